/* model_families: one row a family of the Llama skeleton. Adding a family is adding a row.
 *
 * A row holds what config.json leaves out (the defaults of transformers' config classes), how it
 * spells the keys that differ, which optional keys the family knows, and the tensor names. Plain
 * constants; model_config.c reads config.json with them.
 */
#pragma once

#include "host/model_config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which keys decide about sliding window attention. */
enum sliding_keys {
    SLIDING_NONE,     /* full attention whatever config.json says */
    SLIDING_PLAIN,    /* sliding_window: null or the window */
    SLIDING_SWITCHED, /* use_sliding_window, then sliding_window */
    SLIDING_LAYERS    /* the same, for layers from max_window_layers on, or as layer_types says */
};

struct model_family {
    const char *model_type; /* config.json's model_type, and the family's name */

    /* Key spellings; NULL in a dense family. */
    const char *key_num_experts;
    const char *key_moe_intermediate_size;

    /* Defaults of missing keys. A missing key without a default is an error. */
    int32_t num_experts; /* 0: no default */
    int32_t num_experts_per_tok;
    int32_t num_key_value_heads; /* 0: as many as heads */
    int32_t max_position_embeddings;
    int32_t bos_token_id, eos_token_id; /* -1: none */
    double rms_norm_eps;
    double rope_theta;
    int32_t sliding_window; /* the window once it is switched on; 0: no default */

    /* What the family's reference implementation does or reads. */
    bool norm_topk_prob; /* top-k weights are renormalised, or: default of the key */
    bool reads_norm_topk_prob;
    bool reads_gate_logits_norm; /* Skywork's moe_* keys */
    bool reads_sparse_layers;    /* decoder_sparse_step, mlp_only_layers */
    bool reads_bias_keys;        /* attention_bias, mlp_bias: true is refused, o would have one */
    bool reads_clip_qkv;
    bool attention_bias; /* q, k, v always have a bias */
    enum qk_norm qk_norm;
    enum sliding_keys sliding;
    struct tensor_names names;
};

/* NULL when there is no such row. */
const struct model_family *model_family_find(const char *model_type);

/* Row i; NULL past the end. */
const struct model_family *model_family_at(size_t i);

#ifdef __cplusplus
}
#endif
