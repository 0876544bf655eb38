#include "model_families.h"

#include <string.h>

/* The dense FFN, also that of the dense layers of a mixed model. */
#define MLP_DENSE                                                                                  \
    .dense_gate = "mlp.gate_proj.weight", .dense_up = "mlp.up_proj.weight",                        \
    .dense_down = "mlp.down_proj.weight"

#define NAMES_DENSE                                                                                \
    { MLP_DENSE }

#define NAMES_BLOCK_SPARSE                                                                         \
    {                                                                                              \
        .router = "block_sparse_moe.gate.weight",                                                  \
        .expert_gate = "block_sparse_moe.experts.%d.w1.weight",                                    \
        .expert_up = "block_sparse_moe.experts.%d.w3.weight",                                      \
        .expert_down = "block_sparse_moe.experts.%d.w2.weight"                                     \
    }

#define NAMES_MLP_EXPERTS                                                                          \
    {                                                                                              \
        .router = "mlp.gate.weight", .expert_gate = "mlp.experts.%d.gate_proj.weight",             \
        .expert_up = "mlp.experts.%d.up_proj.weight",                                              \
        .expert_down = "mlp.experts.%d.down_proj.weight", MLP_DENSE                                \
    }

static const struct model_family table[] = {
    {
        .model_type = "skywork_moe",
        .key_num_experts = "num_experts",
        .key_moe_intermediate_size = "intermediate_size",
        .num_experts_per_tok = 2,
        .max_position_embeddings = 4096,
        .bos_token_id = 1,
        .eos_token_id = 2,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000,
        .norm_topk_prob = true,
        .reads_gate_logits_norm = true,
        .names = NAMES_BLOCK_SPARSE,
    },
    {
        .model_type = "mixtral",
        .key_num_experts = "num_local_experts",
        .key_moe_intermediate_size = "intermediate_size",
        .num_experts = 8,
        .num_experts_per_tok = 2,
        .num_key_value_heads = 8,
        .max_position_embeddings = 131072,
        .bos_token_id = 1,
        .eos_token_id = 2,
        .rms_norm_eps = 1e-5,
        .rope_theta = 1e6,
        .norm_topk_prob = true,
        .sliding = SLIDING_PLAIN,
        .names = NAMES_BLOCK_SPARSE,
    },
    {
        .model_type = "qwen3_moe",
        .key_num_experts = "num_experts",
        .key_moe_intermediate_size = "moe_intermediate_size",
        .num_experts = 128,
        .num_experts_per_tok = 8,
        .num_key_value_heads = 4,
        .max_position_embeddings = 32768,
        .bos_token_id = -1,
        .eos_token_id = -1,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000,
        .sliding_window = 4096,
        .reads_norm_topk_prob = true,
        .reads_sparse_layers = true,
        .reads_bias_keys = true,
        .qk_norm = QK_NORM_HEAD,
        .sliding = SLIDING_SWITCHED,
        .names = NAMES_MLP_EXPERTS,
    },
    {
        .model_type = "olmoe",
        .key_num_experts = "num_experts",
        .key_moe_intermediate_size = "intermediate_size",
        .num_experts = 64,
        .num_experts_per_tok = 8,
        .max_position_embeddings = 4096,
        .bos_token_id = -1,
        .eos_token_id = 50279,
        .rms_norm_eps = 1e-5,
        .rope_theta = 10000,
        .reads_norm_topk_prob = true,
        .reads_bias_keys = true,
        .reads_clip_qkv = true,
        .qk_norm = QK_NORM_PROJECTION,
        .names = NAMES_MLP_EXPERTS,
    },
    {
        .model_type = "llama",
        .max_position_embeddings = 2048,
        .bos_token_id = 1,
        .eos_token_id = 2,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000,
        .reads_bias_keys = true,
        .names = NAMES_DENSE,
    },
    {
        .model_type = "qwen2",
        .num_key_value_heads = 32,
        .max_position_embeddings = 32768,
        .bos_token_id = -1,
        .eos_token_id = -1,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000,
        .sliding_window = 4096,
        .attention_bias = true,
        .sliding = SLIDING_LAYERS,
        .names = NAMES_DENSE,
    },
    {
        .model_type = "skywork",
        .max_position_embeddings = 4096,
        .bos_token_id = 1,
        .eos_token_id = 2,
        .rms_norm_eps = 1e-6,
        .rope_theta = 10000,
        .names = NAMES_DENSE,
    },
};

const char *model_config_families(void) {
    return "skywork_moe, mixtral, qwen3_moe, olmoe, llama, qwen2, skywork";
}

const struct model_family *model_family_at(size_t i) {
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

const struct model_family *model_family_find(const char *model_type) {
    const struct model_family *f;
    for (size_t i = 0; (f = model_family_at(i)); i++)
        if (strcmp(f->model_type, model_type) == 0)
            return f;
    return NULL;
}
