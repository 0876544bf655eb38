/* model_config: what config.json says of a model, in one flat struct for every family.
 *
 * A family of the Llama skeleton is one row of the table in model_families.c: its model_type, the
 * names of its keys where they differ, its defaults, and its tensor names. The forward pass looks
 * only at the fields below, never at the family. Field names keep config.json's spelling.
 *
 * Every size is bounded (MAX_* below) so that no product of them overflows an int64_t. A key that
 * would change the computation in a way that we do not implement is refused, never ignored.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/dtype.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MAX_LAYERS = 256,
    MAX_EXPERTS = 1024,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 1024,
    MAX_HIDDEN = 1 << 16,       /* hidden_size */
    MAX_INTERMEDIATE = 1 << 20, /* width of an FFN, dense or of one expert */
    MAX_VOCAB = 1 << 22,
    MAX_POSITIONS = 1 << 27,
    MAX_EOS_IDS = 8
};

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

/* Where query and key are normalised after their projection. */
enum qk_norm {
    QK_NORM_NONE,
    QK_NORM_HEAD,      /* RMSNorm over head_dim, weights [D]          (Qwen3) */
    QK_NORM_PROJECTION /* RMSNorm over the whole projection, weights [Hq*D], [Hkv*D] (OLMoE) */
};

/* What one scale of FP8 weights belongs to. */
enum fp8_scaling {
    FP8_TENSOR, /* a whole matrix */
    FP8_ROW,    /* a row: an output channel */
    FP8_BLOCK   /* FP8_BLOCK_SIZE rows x FP8_BLOCK_SIZE columns, counted from element (0, 0) */
};
enum { FP8_BLOCK_SIZE = 128 };

/* The gate: logits -> weights of the num_experts_per_tok best. One struct serves all models:
 *   z = W x;  if logits_std > 0: z /= (std(z) / logits_std), std unbiased over the E experts;
 *   p = softmax(z);  keep the K best;  if norm_topk_prob: divide by their sum;  multiply by
 *   routed_scaling_factor. */
struct router_config {
    int32_t num_experts;         /* E; 0 for a dense model */
    int32_t num_experts_per_tok; /* K */
    bool norm_topk_prob;
    float logits_std;            /* target std of Skywork's gate normalisation; 0: off */
    float routed_scaling_factor; /* 1 when the model has none */
};

/* How a family spells the tensors of an FFN, after "model.layers.<layer>."; %d is the expert. All
 * other names are the same everywhere. NULL where the family has no such tensor. */
struct tensor_names {
    const char *router;                                /* "mlp.gate.weight" */
    const char *expert_gate, *expert_up, *expert_down; /* "mlp.experts.%d.gate_proj.weight" */
    const char *dense_gate, *dense_up, *dense_down;    /* "mlp.gate_proj.weight" */
};

struct model_config {
    char model_type[32];         /* as in config.json */
    const char *family;          /* the table's name of the family; static */
    int32_t num_hidden_layers;   /* L */
    int32_t hidden_size;         /* H */
    int32_t num_attention_heads; /* Hq */
    int32_t num_key_value_heads; /* Hkv */
    int32_t head_dim;            /* D, even */
    int32_t vocab_size;          /* V */
    int32_t max_position_embeddings;
    int32_t intermediate_size;     /* of dense layers; 0 when there are none */
    int32_t moe_intermediate_size; /* I of an expert; 0 when dense */
    struct router_config router;
    uint8_t layer_is_moe[MAX_LAYERS]; /* 1: experts, 0: dense FFN */
    float rms_norm_eps;
    bool tie_word_embeddings;
    bool attention_bias; /* q, k, v have a bias (o never has) */
    enum qk_norm qk_norm;
    float clip_qkv;         /* clamp q, k, v to +-this; 0: off */
    int32_t sliding_window; /* keys further back are not seen; 0: full attention */
    float rope_theta;
    enum rope_type rope_type;
    float rope_factor;                                 /* linear, llama3 */
    float rope_low_freq_factor, rope_high_freq_factor; /* llama3 */
    int32_t rope_original_max_position;                /* llama3 */
    enum dtype torch_dtype; /* what the checkpoint says it is stored in */
    bool fp8;               /* quantization_config: F8_E4M3 projections, experts and dense FFNs */
    enum fp8_scaling fp8_scaling; /* BLOCK, or else TENSOR or ROW as the shapes of scales say */
    int32_t bos_token_id;         /* -1: none */
    int32_t eos_token_ids[MAX_EOS_IDS]; /* distinct; ids outside the vocabulary are left out */
    int32_t num_eos_token_ids;
    struct tensor_names names;
};

/* Reads DIR/config.json, and DIR/generation_config.json's eos_token_id if that file exists. Every
 * problem is added to `error`, one a line; an unknown family names itself and the known ones. On
 * failure *out is zeroed. ERR_NOT_FOUND, ERR_BAD_FILE, ERR_UNSUPPORTED. */
int model_config_load(const char *model_dir, struct model_config *out, struct error *error);

/* The same from the text of a config.json; `where` names it in messages. (Fuzzed.) */
int model_config_parse(const char *text, size_t len, const char *where, struct model_config *out,
                       struct error *error);

/* The families' names, comma-separated, for messages and --help. */
const char *model_config_families(void);

/* inv_freq[D/2] of rope with the model's scaling applied, rounded to float at each step as in
 * https://github.com/huggingface/transformers, modeling_rope_utils.py. */
void model_config_inv_freq(const struct model_config *c, float *inv_freq);

/* Parameters in all, and those that one token uses. */
int64_t model_config_parameters(const struct model_config *c);
int64_t model_config_active_parameters(const struct model_config *c);

#ifdef __cplusplus
}
#endif
