#include "estimate.h"

static int64_t part(int32_t count, int32_t parts) {
    return (count + parts - 1) / parts;
}

int64_t estimate_activation_bytes(const struct model_config *c, const struct estimate_sizes *s) {
    int64_t T = s->max_tokens, R = s->max_logits;
    int64_t H = c->hidden_size, D = c->head_dim, V = c->vocab_size;
    int64_t K = c->router.num_experts_per_tok > 0 ? c->router.num_experts_per_tok : 1;
    int64_t heads = part(c->num_attention_heads, s->world_size);
    int64_t kv = part(c->num_key_value_heads, s->world_size);
    int64_t moe = part(c->moe_intermediate_size, s->tp_size);
    int64_t ffn = part(c->intermediate_size, s->world_size), I = moe > ffn ? moe : ffn;
    return T * (14 * H + 2 * (2 * heads + 2 * kv) * D + K * (4 * H + 2 * I)) +
           (int64_t)s->max_model_len * D * 4 + R * (6 * H + 4 * V);
}
