#include "model_config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"
#include "model_families.h"

#define CONFIG_MAX_BYTES ((size_t)4 << 20)

/* One JSON file being read: the object, and where its problems go. */
struct reader {
    json_t *root;
    const char *where;
    struct error *error; /* may be NULL */
    int code;            /* of the first problem */
};

/* Adds "<file>: <text>". */
__attribute__((format(printf, 3, 4))) static void problem(struct reader *r, int code,
                                                          const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    error_add(r->error, code, "%s: %s", r->where, text);
    if (r->code == 0)
        r->code = code;
}

/* A value as messages show it: JSON, shortened. */
struct shown {
    char text[48];
};

static struct shown show(const json_t *v) {
    struct shown s = {"null"};
    if (json_is_object(v))
        return (struct shown){"an object"};
    if (json_is_array(v))
        return (struct shown){"a list"};
    char *dump = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    if (dump)
        snprintf(s.text, sizeof s.text, "%s", dump);
    free(dump);
    return s;
}

/* ------------------------------------------------------------------------------- typed reads */

/* NULL when the key is missing or null. */
static json_t *present(json_t *obj, const char *key) {
    json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

static int64_t check_int(struct reader *r, const char *key, const json_t *v, int64_t def,
                         int64_t min, int64_t max) {
    if (json_is_integer(v) && json_integer_value(v) >= min && json_integer_value(v) <= max)
        return json_integer_value(v);
    problem(r, ERR_BAD_FILE, "%s: %s is not an integer from %lld to %lld", key, show(v).text,
            (long long)min, (long long)max);
    return def;
}

static int32_t read_int(struct reader *r, const char *key, int32_t def, int32_t min, int32_t max) {
    json_t *v = present(r->root, key);
    return v ? (int32_t)check_int(r, key, v, def, min, max) : def;
}

/* A size that has no default: 1 to max, or 0 after a problem. */
static int32_t read_size(struct reader *r, const char *key, int32_t max) {
    if (!present(r->root, key)) {
        problem(r, ERR_BAD_FILE, "%s: missing", key);
        return 0;
    }
    return read_int(r, key, 0, 1, max);
}

static double read_number_in(struct reader *r, json_t *obj, const char *key, double def, double min,
                             double max) {
    json_t *v = present(obj, key);
    if (!v)
        return def;
    if (json_is_number(v) && json_number_value(v) >= min && json_number_value(v) <= max)
        return json_number_value(v);
    problem(r, ERR_BAD_FILE, "%s: %s is not a number from %g to %g", key, show(v).text, min, max);
    return def;
}

static double read_number(struct reader *r, const char *key, double def, double min, double max) {
    return read_number_in(r, r->root, key, def, min, max);
}

static bool read_bool(struct reader *r, const char *key, bool def) {
    json_t *v = present(r->root, key);
    if (!v)
        return def;
    if (!json_is_boolean(v))
        problem(r, ERR_BAD_FILE, "%s: %s is not true or false", key, show(v).text);
    return json_is_true(v);
}

/* Refuses a flag that is not as wanted. */
static void require_bool(struct reader *r, const char *key, bool wanted, const char *reason) {
    if (read_bool(r, key, wanted) != wanted)
        problem(r, ERR_UNSUPPORTED, "%s: %s is not supported (%s)", key, wanted ? "false" : "true",
                reason);
}

/* ------------------------------------------------------------------------------------- parts */

static void read_attention(struct reader *r, const struct model_family *f, struct model_config *c) {
    c->hidden_size = read_size(r, "hidden_size", MAX_HIDDEN);
    int32_t heads = c->num_attention_heads = read_size(r, "num_attention_heads", MAX_HEADS);

    /* Missing: the family's default. Null: as many as heads. */
    int32_t kv = heads;
    if (present(r->root, "num_key_value_heads"))
        kv = read_int(r, "num_key_value_heads", 0, 1, MAX_HEADS);
    else if (!json_object_get(r->root, "num_key_value_heads") && f->num_key_value_heads)
        kv = f->num_key_value_heads;
    c->num_key_value_heads = kv;
    if (heads > 0 && kv > 0 && heads % kv != 0)
        problem(r, ERR_BAD_FILE, "num_key_value_heads: %d does not divide the %d attention heads",
                kv, heads);

    if (present(r->root, "head_dim"))
        c->head_dim = read_int(r, "head_dim", 0, 1, MAX_HEAD_DIM);
    else if (heads > 0 && c->hidden_size % heads != 0)
        problem(r, ERR_BAD_FILE,
                "hidden_size: %d is not a multiple of the %d attention heads, and there is no "
                "head_dim",
                c->hidden_size, heads);
    else if (heads > 0 && c->hidden_size / heads > MAX_HEAD_DIM)
        problem(r, ERR_BAD_FILE, "hidden_size: %d makes heads of %d, more than %d", c->hidden_size,
                c->hidden_size / heads, MAX_HEAD_DIM);
    else if (heads > 0)
        c->head_dim = c->hidden_size / heads;
    if (c->head_dim % 2)
        problem(r, ERR_BAD_FILE, "head_dim: %d is odd; rope needs pairs", c->head_dim);

    c->attention_bias = f->attention_bias;
    c->qk_norm = f->qk_norm;
    if (f->reads_bias_keys) {
        require_bool(r, "attention_bias", false, "it also gives o_proj a bias");
        require_bool(r, "mlp_bias", false, "an FFN with biases");
    }
    if (f->reads_clip_qkv)
        c->clip_qkv = (float)read_number(r, "clip_qkv", 0, 1e-6, 1e6);
}

/* How many layers slide, by layer_types or max_window_layers. */
static int32_t sliding_layers(struct reader *r, const struct model_config *c) {
    json_t *types = present(r->root, "layer_types"), *v;
    int32_t full = read_int(r, "max_window_layers", 28, 0, INT32_MAX), sliding = 0;
    size_t i;
    if (!types)
        return full < c->num_hidden_layers ? c->num_hidden_layers - full : 0;
    if (json_array_size(types) != (size_t)c->num_hidden_layers) {
        problem(r, ERR_BAD_FILE, "layer_types: expected a list of %d layers", c->num_hidden_layers);
        return 0;
    }
    json_array_foreach(types, i, v) {
        const char *text = json_is_string(v) ? json_string_value(v) : "";
        if (strcmp(text, "sliding_attention") == 0)
            sliding++;
        else if (strcmp(text, "full_attention") != 0)
            problem(r, ERR_UNSUPPORTED, "layer_types: %s is not supported", show(v).text);
    }
    return sliding;
}

static void read_sliding_window(struct reader *r, const struct model_family *f,
                                struct model_config *c) {
    if (f->sliding == SLIDING_NONE)
        return;
    if (f->sliding != SLIDING_PLAIN && !read_bool(r, "use_sliding_window", false))
        return;
    /* An explicit null is full attention; only a missing key has a default. */
    int32_t def = json_object_get(r->root, "sliding_window") ? 0 : f->sliding_window;
    int32_t window = read_int(r, "sliding_window", def, 1, MAX_POSITIONS);
    int32_t layers = c->num_hidden_layers;
    int32_t sliding = f->sliding == SLIDING_LAYERS ? sliding_layers(r, c) : layers;
    if (window > 0 && sliding != 0 && sliding != layers)
        problem(r, ERR_UNSUPPORTED,
                "use_sliding_window: true with %d of %d layers sliding is not supported (all or "
                "none)",
                sliding, layers);
    else if (sliding != 0)
        c->sliding_window = window;
}

static void read_rope_llama3(struct reader *r, json_t *rope, struct model_config *c) {
    c->rope_low_freq_factor = (float)read_number_in(r, rope, "low_freq_factor", 0, 1e-3, 1e3);
    c->rope_high_freq_factor = (float)read_number_in(r, rope, "high_freq_factor", 0, 1e-3, 1e3);
    const char *key = "original_max_position_embeddings";
    json_t *v = present(rope, key);
    if (v)
        c->rope_original_max_position = (int32_t)check_int(r, key, v, 0, 1, MAX_POSITIONS);
    if (!v || !present(rope, "low_freq_factor") || !present(rope, "high_freq_factor"))
        problem(r, ERR_BAD_FILE, "rope type llama3 needs low_freq_factor, high_freq_factor and %s",
                key);
    else if (c->rope_high_freq_factor <= c->rope_low_freq_factor)
        problem(r, ERR_BAD_FILE, "high_freq_factor: %g is not above low_freq_factor, %g",
                (double)c->rope_high_freq_factor, (double)c->rope_low_freq_factor);
}

/* rope_scaling (null, or an object with "rope_type" or "type"), or the newer rope_parameters, which
 * also holds rope_theta. */
static void read_rope(struct reader *r, const struct model_family *f, struct model_config *c) {
    json_t *scaling = present(r->root, "rope_scaling");
    json_t *parameters = present(r->root, "rope_parameters");
    json_t *rope = scaling ? scaling : parameters;
    const char *key = scaling ? "rope_scaling" : "rope_parameters";

    double theta = read_number(r, "rope_theta", f->rope_theta, 1, 1e12);
    theta = read_number_in(r, parameters, "rope_theta", theta, 1, 1e12);
    c->rope_theta = (float)read_number_in(r, scaling, "rope_theta", theta, 1, 1e12);
    if (!rope)
        return;
    if (!json_is_object(rope)) {
        problem(r, ERR_BAD_FILE, "%s: %s is not an object", key, show(rope).text);
        return;
    }
    json_t *type = present(rope, "rope_type");
    if (!type)
        type = present(rope, "type");
    const char *text = !type ? "default" : json_is_string(type) ? json_string_value(type) : "";
    if (strcmp(text, "default") == 0)
        c->rope_type = ROPE_DEFAULT;
    else if (strcmp(text, "linear") == 0)
        c->rope_type = ROPE_LINEAR;
    else if (strcmp(text, "llama3") == 0)
        c->rope_type = ROPE_LLAMA3;
    else
        problem(r, ERR_UNSUPPORTED,
                "%s: rope type %s is not supported (default, linear and llama3 are)", key,
                show(type).text);
    if (!type && json_object_get(rope, "full_attention"))
        problem(r, ERR_UNSUPPORTED, "%s: a rope for each layer type is not supported", key);
    if (read_number_in(r, rope, "partial_rotary_factor", 1, 0, 1) != 1)
        problem(r, ERR_UNSUPPORTED, "%s: partial_rotary_factor below 1 is not supported", key);
    if (c->rope_type == ROPE_DEFAULT)
        return;
    if (!present(rope, "factor"))
        problem(r, ERR_BAD_FILE, "%s: rope type %s needs a factor", key, text);
    c->rope_factor = (float)read_number_in(r, rope, "factor", 1, 1e-3, 1e6);
    if (c->rope_type == ROPE_LLAMA3)
        read_rope_llama3(r, rope, c);
}

/* An integer, or a list of one. */
static int32_t read_num_experts(struct reader *r, const struct model_family *f) {
    const char *key = f->key_num_experts;
    json_t *v = present(r->root, key);
    if (json_is_array(v) && json_array_size(v) == 1)
        v = json_array_get(v, 0);
    if (v)
        return (int32_t)check_int(r, key, v, 0, 1, MAX_EXPERTS);
    if (f->num_experts == 0)
        problem(r, ERR_BAD_FILE, "%s: missing", key);
    return f->num_experts;
}

static void read_skywork_gate(struct reader *r, struct model_config *c) {
    if (read_bool(r, "moe_use_logits_norm", false))
        c->router.logits_std = (float)read_number(r, "moe_gate_norm_std", 1, 1e-3, 1e3);
    require_bool(r, "moe_2layer_gate", false, "a gate of two layers");
    require_bool(r, "moe_use_skywork_gating", false, "another gate");
    require_bool(r, "moe_feature_no_mul_topk", true, "inputs of experts multiplied by top-k");
    int32_t interval = read_int(r, "moe_expert_interval", 1, 1, MAX_LAYERS);
    if (interval != 1)
        problem(r, ERR_UNSUPPORTED, "moe_expert_interval: %d is not supported (only 1)", interval);
}

/* Which layers have experts; returns how many. */
static int32_t read_sparse_layers(struct reader *r, const struct model_family *f,
                                  struct model_config *c) {
    int32_t step = 1, count = 0;
    json_t *dense = NULL, *v;
    size_t i;
    if (f->reads_sparse_layers) {
        step = read_int(r, "decoder_sparse_step", 1, 1, INT32_MAX);
        dense = present(r->root, "mlp_only_layers");
    }
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        c->layer_is_moe[l] = (l + 1) % step == 0;
    if (dense && !json_is_array(dense))
        problem(r, ERR_BAD_FILE, "mlp_only_layers: %s is not a list", show(dense).text);
    json_array_foreach(dense, i, v) {
        int64_t l = check_int(r, "mlp_only_layers", v, -1, 0, INT32_MAX);
        if (l < 0)
            break;          /* one message is enough for a long list */
        if (l < MAX_LAYERS) /* as in the reference, a layer that does not exist has no effect */
            c->layer_is_moe[l] = 0;
    }
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        count += c->layer_is_moe[l];
    return count;
}

static void read_ffn(struct reader *r, const struct model_family *f, struct model_config *c) {
    int32_t moe_layers = 0;
    json_t *act = present(r->root, "hidden_act");
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        problem(r, ERR_UNSUPPORTED, "hidden_act: %s is not supported (only silu)", show(act).text);

    c->router.routed_scaling_factor = 1;
    if (f->key_num_experts)
        moe_layers = read_sparse_layers(r, f, c);
    if (moe_layers > 0) {
        struct router_config *g = &c->router;
        g->num_experts = read_num_experts(r, f);
        g->num_experts_per_tok =
            read_int(r, "num_experts_per_tok", f->num_experts_per_tok, 1, MAX_EXPERTS);
        g->norm_topk_prob = f->norm_topk_prob;
        if (g->num_experts > 0 && g->num_experts_per_tok > g->num_experts)
            problem(r, ERR_BAD_FILE, "num_experts_per_tok: %d is more than the %d experts (%s)",
                    g->num_experts_per_tok, g->num_experts, f->key_num_experts);
        if (f->reads_norm_topk_prob)
            g->norm_topk_prob = read_bool(r, "norm_topk_prob", f->norm_topk_prob);
        if (f->reads_gate_logits_norm)
            read_skywork_gate(r, c);
        c->moe_intermediate_size = read_size(r, f->key_moe_intermediate_size, MAX_INTERMEDIATE);
    }
    if (moe_layers < c->num_hidden_layers)
        c->intermediate_size = read_size(r, "intermediate_size", MAX_INTERMEDIATE);
}

/* ids that the model cannot produce are left out; -1 means none. */
static void add_eos(struct reader *r, struct model_config *c, const json_t *v) {
    int64_t id = check_int(r, "eos_token_id", v, -1, -1, INT32_MAX);
    if (id < 0 || id >= c->vocab_size)
        return;
    for (int32_t i = 0; i < c->num_eos_token_ids; i++)
        if (c->eos_token_ids[i] == id)
            return;
    if (c->num_eos_token_ids == MAX_EOS_IDS)
        problem(r, ERR_UNSUPPORTED, "eos_token_id: more than %d ids", MAX_EOS_IDS);
    else
        c->eos_token_ids[c->num_eos_token_ids++] = (int32_t)id;
}

/* An id or a list of ids, added to those that are known already. */
static void read_eos(struct reader *r, struct model_config *c) {
    json_t *ids = present(r->root, "eos_token_id"), *v;
    size_t i;
    int before = r->code;
    if (ids && !json_is_array(ids))
        add_eos(r, c, ids);
    json_array_foreach(ids, i, v) {
        add_eos(r, c, v);
        if (r->code != before)
            break; /* one message is enough for a long list */
    }
}

static void read_tokens(struct reader *r, const struct model_family *f, struct model_config *c) {
    c->vocab_size = read_size(r, "vocab_size", MAX_VOCAB);
    c->bos_token_id = f->bos_token_id < c->vocab_size ? f->bos_token_id : -1;
    if (json_object_get(r->root, "bos_token_id"))
        c->bos_token_id = read_int(r, "bos_token_id", -1, -1, INT32_MAX);
    if (c->vocab_size > 0 && c->bos_token_id >= c->vocab_size)
        problem(r, ERR_BAD_FILE, "bos_token_id: %d is outside the vocabulary of %d",
                c->bos_token_id, c->vocab_size);
    read_eos(r, c);
    if (!json_object_get(r->root, "eos_token_id") && f->eos_token_id >= 0 &&
        f->eos_token_id < c->vocab_size)
        c->eos_token_ids[c->num_eos_token_ids++] = f->eos_token_id;
}

static void read_storage(struct reader *r, struct model_config *c) {
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"bfloat16", DTYPE_BF16}, {"float16", DTYPE_F16}, {"float32", DTYPE_F32}};
    json_t *v = present(r->root, "torch_dtype");
    if (!v)
        v = present(r->root, "dtype"); /* the newer spelling */
    const char *text = json_is_string(v) ? json_string_value(v) : "";
    c->torch_dtype = v ? DTYPE_NONE : DTYPE_BF16;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i].name, text) == 0)
            c->torch_dtype = names[i].dtype;
    if (c->torch_dtype == DTYPE_NONE)
        problem(r, ERR_UNSUPPORTED,
                "torch_dtype: %s is not supported (bfloat16, float16 and float32 are)",
                show(v).text);
}

/* Size of the blocks that share a scale; NULL: it is not said. */
static void check_block(struct reader *r, const char *key, const json_t *v) {
    bool fits = json_is_array(v) && json_array_size(v) == 2;
    for (size_t i = 0; fits && i < 2; i++)
        fits = json_integer_value(json_array_get(v, i)) == FP8_BLOCK_SIZE;
    if (fits)
        return;
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    problem(r, ERR_UNSUPPORTED, "quantization_config: %s %.48s is not supported (only [%d, %d])",
            key, text ? text : "null", FP8_BLOCK_SIZE, FP8_BLOCK_SIZE);
    free(text);
}

/* quant_method fp8, as DeepSeek, Qwen3 and Skywork-MoE write it. */
static void read_fp8(struct reader *r, json_t *q, struct model_config *c) {
    json_t *fmt = present(q, "fmt"), *block = present(q, "weight_block_size");
    if (fmt && (!json_is_string(fmt) || strcmp(json_string_value(fmt), "e4m3") != 0))
        problem(r, ERR_UNSUPPORTED, "quantization_config: fmt %s is not supported (only e4m3)",
                show(fmt).text);
    if (block)
        check_block(r, "weight_block_size", block);
    c->fp8_scaling = block ? FP8_BLOCK : FP8_TENSOR;
}

/* The weights of one group of layers of quant_method compressed-tensors. */
static enum fp8_scaling read_weights_scheme(struct reader *r, const char *group, json_t *weights) {
    json_t *bits = present(weights, "num_bits"), *type = present(weights, "type");
    json_t *strategy = present(weights, "strategy");
    const char *text = json_is_string(strategy) ? json_string_value(strategy) : "";
    if (json_integer_value(bits) != 8 || !json_is_string(type) ||
        strcmp(json_string_value(type), "float") != 0)
        problem(r, ERR_UNSUPPORTED,
                "quantization_config: %s: weights of %s bits of type %s are not supported (only 8 "
                "bits of type float)",
                group, show(bits).text, show(type).text);
    else if (strcmp(text, "block") == 0)
        check_block(r, "block_structure", present(weights, "block_structure"));
    else if (strcmp(text, "tensor") != 0 && strcmp(text, "channel") != 0)
        problem(r, ERR_UNSUPPORTED,
                "quantization_config: %s: strategy %s is not supported (tensor, channel and block "
                "are)",
                group, show(strategy).text);
    return strcmp(text, "block") == 0     ? FP8_BLOCK
           : strcmp(text, "channel") == 0 ? FP8_ROW
                                          : FP8_TENSOR;
}

static void read_compressed_tensors(struct reader *r, json_t *q, struct model_config *c) {
    json_t *groups = present(q, "config_groups"), *group;
    json_t *sparsity = present(present(q, "sparsity_config"), "format");
    const char *name;
    int blocks = 0, n = 0;
    if (!json_is_object(groups) || json_object_size(groups) == 0)
        problem(r, ERR_BAD_FILE, "quantization_config: config_groups: missing or empty");
    if (sparsity &&
        (!json_is_string(sparsity) || strcmp(json_string_value(sparsity), "dense") != 0))
        problem(r, ERR_UNSUPPORTED,
                "quantization_config: sparsity_config: format %s is not supported (only dense)",
                show(sparsity).text);
    json_object_foreach(groups, name, group) {
        c->fp8_scaling = read_weights_scheme(r, name, present(group, "weights"));
        blocks += c->fp8_scaling == FP8_BLOCK;
        n++;
    }
    if (blocks > 0 && blocks < n)
        problem(r, ERR_UNSUPPORTED,
                "quantization_config: groups with block scales beside others are not supported");
}

/* Activations stay in their type whatever the scheme says of them; which layers are quantised shows
 * in the dtypes of their tensors. */
static void read_quantization(struct reader *r, struct model_config *c) {
    json_t *q = present(r->root, "quantization_config");
    json_t *method = present(q, "quant_method");
    const char *text = json_is_string(method) ? json_string_value(method) : "";
    if (!q)
        return;
    c->fp8 = true;
    if (strcmp(text, "fp8") == 0)
        read_fp8(r, q, c);
    else if (strcmp(text, "compressed-tensors") == 0)
        read_compressed_tensors(r, q, c);
    else
        problem(r, ERR_UNSUPPORTED,
                "quantization_config: quant_method %s is not supported (fp8 and compressed-tensors "
                "are, with F8_E4M3 weights and a scale for each tensor, row or block of %d x %d)",
                show(method).text, FP8_BLOCK_SIZE, FP8_BLOCK_SIZE);
}

/* ---------------------------------------------------------------------------------- the whole */

static const struct model_family *find_family(struct reader *r, struct model_config *c) {
    json_t *v = present(r->root, "model_type");
    const char *text = json_is_string(v) ? json_string_value(v) : "";
    const struct model_family *f = model_family_find(text);
    /* Skywork-MoE was also published under the dense model's type. */
    if (strcmp(text, "skywork") == 0 && present(r->root, "num_experts"))
        f = model_family_find("skywork_moe");
    if (!f) {
        problem(r, ERR_UNSUPPORTED, "model_type: %s is not supported; known: %s", show(v).text,
                model_config_families());
        return NULL;
    }
    snprintf(c->model_type, sizeof c->model_type, "%s", text);
    c->family = f->model_type;
    c->names = f->names;
    return f;
}

static void read_model(struct reader *r, struct model_config *c) {
    if (!json_is_object(r->root)) {
        problem(r, ERR_BAD_FILE, "expected a JSON object, found %s", show(r->root).text);
        return;
    }
    const struct model_family *f = find_family(r, c);
    if (!f)
        return;
    c->num_hidden_layers = read_size(r, "num_hidden_layers", MAX_LAYERS);
    if (c->num_hidden_layers == 0)
        c->num_hidden_layers = 1; /* already refused; go on to find the other problems */
    read_attention(r, f, c);
    read_sliding_window(r, f, c);
    read_rope(r, f, c);
    read_ffn(r, f, c);
    read_tokens(r, f, c);
    read_storage(r, c);
    read_quantization(r, c);
    c->rms_norm_eps = (float)read_number(r, "rms_norm_eps", f->rms_norm_eps, 1e-20, 1);
    c->tie_word_embeddings = read_bool(r, "tie_word_embeddings", false);
    c->max_position_embeddings =
        read_int(r, "max_position_embeddings", f->max_position_embeddings, 1, MAX_POSITIONS);
    if (read_number(r, "rotary_percent", 1, 0, 1) != 1 ||
        read_number(r, "partial_rotary_factor", 1, 0, 1) != 1)
        problem(r, ERR_UNSUPPORTED, "rotary_percent: below 1 is not supported");
}

int model_config_parse(const char *text, size_t len, const char *where, struct model_config *out,
                       struct error *error) {
    struct reader r = {.where = where, .error = error};
    memset(out, 0, sizeof *out);
    r.root = json_parse(text, len, where, ERR_BAD_FILE, error);
    if (!r.root)
        return ERR_BAD_FILE;
    read_model(&r, out);
    json_decref(r.root);
    if (r.code)
        memset(out, 0, sizeof *out);
    return r.code;
}

/* Ids at which generation ends may also stand in generation_config.json. */
static int load_generation_config(const char *path, struct model_config *c, struct error *error) {
    struct reader r = {.where = path, .error = error};
    r.root = json_parse_file(path, CONFIG_MAX_BYTES, error);
    if (!r.root)
        return ERR_BAD_FILE;
    if (json_is_object(r.root))
        read_eos(&r, c);
    else
        problem(&r, ERR_BAD_FILE, "expected a JSON object, found %s", show(r.root).text);
    json_decref(r.root);
    return r.code;
}

int model_config_load(const char *model_dir, struct model_config *out, struct error *error) {
    char *path = path_join(model_dir, "config.json");
    char *generation = path_join(model_dir, "generation_config.json");
    char *text = NULL;
    size_t len;
    memset(out, 0, sizeof *out);
    int rc = file_read(path, CONFIG_MAX_BYTES, &text, &len, error);
    if (rc == 0)
        rc = model_config_parse(text, len, path, out, error);
    if (rc == 0 && file_exists(generation))
        rc = load_generation_config(generation, out, error);
    if (rc != 0)
        memset(out, 0, sizeof *out);
    free(text);
    free(path);
    free(generation);
    return rc;
}

/* ------------------------------------------------------------------------------- derived data */

void model_config_inv_freq(const struct model_config *c, float *inv_freq) {
    const float two_pi = 6.28318530717958647692f;
    for (int32_t i = 0; i < c->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        float f = 1.0f / (float)pow((double)c->rope_theta, (double)exponent);
        if (c->rope_type == ROPE_LINEAR)
            f /= c->rope_factor;
        if (c->rope_type == ROPE_LLAMA3) {
            /* Short waves stay, long ones are stretched, those between are mixed. */
            float low = c->rope_low_freq_factor, high = c->rope_high_freq_factor;
            float context = (float)c->rope_original_max_position, wavelen = two_pi / f;
            float smooth = (context / wavelen - low) / (high - low);
            if (wavelen > context / low)
                f /= c->rope_factor;
            else if (wavelen >= context / high)
                f = (1.0f - smooth) * f / c->rope_factor + smooth * f;
        }
        inv_freq[i] = f;
    }
}

/* Parameters with `experts` experts counted in each MoE layer. */
static int64_t parameters(const struct model_config *c, int32_t experts) {
    int64_t H = c->hidden_size, D = c->head_dim;
    int64_t q = c->num_attention_heads * D, kv = c->num_key_value_heads * D;
    int64_t layer = 2 * H + 2 * H * q + 2 * H * kv;
    if (c->attention_bias)
        layer += q + 2 * kv;
    if (c->qk_norm == QK_NORM_HEAD)
        layer += 2 * D;
    if (c->qk_norm == QK_NORM_PROJECTION)
        layer += q + kv;
    int64_t moe = H * c->router.num_experts + 3 * H * c->moe_intermediate_size * experts;
    int64_t dense = 3 * H * c->intermediate_size;
    int64_t total = H + c->vocab_size * H * (c->tie_word_embeddings ? 1 : 2);
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        total += layer + (c->layer_is_moe[l] ? moe : dense);
    return total;
}

int64_t model_config_parameters(const struct model_config *c) {
    return parameters(c, c->router.num_experts);
}

int64_t model_config_active_parameters(const struct model_config *c) {
    return parameters(c, c->router.num_experts_per_tok);
}
