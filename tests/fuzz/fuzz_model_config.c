/* libFuzzer: any bytes as a config.json. What is accepted must keep the promises of the header. */
#include <stdlib.h>

#include "host/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_accepted(const struct model_config *c) {
    float inv_freq[MAX_HEAD_DIM / 2];
    CHECK(c->num_hidden_layers >= 1 && c->num_hidden_layers <= MAX_LAYERS, "layers");
    CHECK(c->hidden_size >= 1 && c->hidden_size <= MAX_HIDDEN, "hidden");
    CHECK(c->head_dim >= 2 && c->head_dim <= MAX_HEAD_DIM && c->head_dim % 2 == 0, "head_dim");
    CHECK(c->num_key_value_heads >= 1 && c->num_attention_heads <= MAX_HEADS &&
              c->num_attention_heads % c->num_key_value_heads == 0,
          "heads");
    CHECK(c->vocab_size >= 1 && c->vocab_size <= MAX_VOCAB, "vocab");
    CHECK(c->router.num_experts >= 0 && c->router.num_experts <= MAX_EXPERTS &&
              c->router.num_experts_per_tok <= c->router.num_experts &&
              (c->router.num_experts > 0) == (c->router.num_experts_per_tok > 0) &&
              (c->router.num_experts > 0) == (c->moe_intermediate_size > 0),
          "experts");
    for (int32_t l = 0; l < MAX_LAYERS; l++)
        CHECK(l >= c->num_hidden_layers ||
                  (c->layer_is_moe[l] ? c->moe_intermediate_size : c->intermediate_size) > 0,
              "layer %d", l);
    CHECK(c->rms_norm_eps > 0 && c->rope_theta >= 1 && c->max_position_embeddings >= 1, "floats");
    CHECK(c->sliding_window >= 0 && c->clip_qkv >= 0 && c->router.logits_std >= 0, "options");
    CHECK(c->bos_token_id >= -1 && c->bos_token_id < c->vocab_size, "bos");
    for (int32_t i = 0; i < c->num_eos_token_ids; i++)
        CHECK(c->eos_token_ids[i] >= 0 && c->eos_token_ids[i] < c->vocab_size, "eos");
    CHECK(model_config_parameters(c) >= model_config_active_parameters(c) &&
              model_config_active_parameters(c) > 0,
          "parameters");
    model_config_inv_freq(c, inv_freq);
    for (int32_t i = 0; i < c->head_dim / 2; i++)
        CHECK(isfinite(inv_freq[i]) && inv_freq[i] >= 0, "inv_freq %d is %g", i,
              (double)inv_freq[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model_config c;
    struct error e = {0};
    int rc = model_config_parse((const char *)data, size, "fuzz", &c, &e);
    CHECK(rc == e.code && (rc == 0) == (e.text[0] == 0), "code %d, message \"%s\"", rc, e.text);
    if (rc == 0)
        check_accepted(&c);
    return 0;
}
