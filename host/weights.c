#include "weights.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "mem.h"

/* ----------------------------------------------------------------------------- the table walk */

enum slot_kind {
    SLOT_NORM,       /* [rows] */
    SLOT_BIAS,       /* [rows] */
    SLOT_MATRIX,     /* [rows, cols], never FP8: embedding, lm_head, router */
    SLOT_PROJECTION, /* [rows, cols], FP8 possible */
};

/* A tensor that the model expects. */
struct slot {
    const char *name; /* valid during the visit */
    enum slot_kind kind;
    int32_t rows, cols;
    struct tensor_source *source; /* to be filled */
};

struct walk {
    const struct model_config *config;
    void (*visit)(void *ctx, const struct slot *slot);
    void *ctx;
    char prefix[32]; /* "model.layers.7." */
};

/* Visits one tensor; its name is the prefix and then fmt. */
__attribute__((format(printf, 6, 7))) static void visit(const struct walk *w,
                                                        struct tensor_source *source,
                                                        enum slot_kind kind, int32_t rows,
                                                        int32_t cols, const char *fmt, ...) {
    char name[160];
    va_list ap;
    int n = snprintf(name, sizeof name, "%s", w->prefix);
    va_start(ap, fmt);
    vsnprintf(name + n, sizeof name - (size_t)n, fmt, ap);
    va_end(ap);
    w->visit(w->ctx, &(struct slot){name, kind, rows, cols, source});
}

static void walk_attention(const struct walk *w, struct layer_source *l) {
    const struct model_config *c = w->config;
    int32_t H = c->hidden_size, D = c->head_dim;
    int32_t q = c->num_attention_heads * D, kv = c->num_key_value_heads * D;
    visit(w, &l->attn_norm, SLOT_NORM, H, 1, "input_layernorm.weight");
    visit(w, &l->q, SLOT_PROJECTION, q, H, "self_attn.q_proj.weight");
    visit(w, &l->k, SLOT_PROJECTION, kv, H, "self_attn.k_proj.weight");
    visit(w, &l->v, SLOT_PROJECTION, kv, H, "self_attn.v_proj.weight");
    visit(w, &l->o, SLOT_PROJECTION, H, q, "self_attn.o_proj.weight");
    if (c->attention_bias) {
        visit(w, &l->q_bias, SLOT_BIAS, q, 1, "self_attn.q_proj.bias");
        visit(w, &l->k_bias, SLOT_BIAS, kv, 1, "self_attn.k_proj.bias");
        visit(w, &l->v_bias, SLOT_BIAS, kv, 1, "self_attn.v_proj.bias");
    }
    if (c->qk_norm != QK_NORM_NONE) {
        bool head = c->qk_norm == QK_NORM_HEAD;
        visit(w, &l->q_norm, SLOT_NORM, head ? D : q, 1, "self_attn.q_norm.weight");
        visit(w, &l->k_norm, SLOT_NORM, head ? D : kv, 1, "self_attn.k_norm.weight");
    }
}

static void walk_ffn(const struct walk *w, struct layer_source *l, bool moe) {
    const struct model_config *c = w->config;
    const struct tensor_names *names = &c->names;
    int32_t H = c->hidden_size, I = moe ? c->moe_intermediate_size : c->intermediate_size;
    visit(w, &l->ffn_norm, SLOT_NORM, H, 1, "post_attention_layernorm.weight");
    if (moe)
        visit(w, &l->router, SLOT_MATRIX, c->router.num_experts, H, "%s", names->router);
    for (int32_t e = 0; e < l->num_experts; e++) {
        struct expert_source *x = &l->experts[e];
        char gate[64], up[64], down[64];
        snprintf(gate, sizeof gate, moe ? names->expert_gate : names->dense_gate, e);
        snprintf(up, sizeof up, moe ? names->expert_up : names->dense_up, e);
        snprintf(down, sizeof down, moe ? names->expert_down : names->dense_down, e);
        visit(w, &x->gate, SLOT_PROJECTION, I, H, "%s", gate);
        visit(w, &x->up, SLOT_PROJECTION, I, H, "%s", up);
        visit(w, &x->down, SLOT_PROJECTION, H, I, "%s", down);
    }
}

/* Visits every tensor that the model expects, in the order of the forward pass. */
static void walk(const struct model_config *c, struct weights *out,
                 void (*on_slot)(void *ctx, const struct slot *slot), void *ctx) {
    struct walk w = {.config = c, .visit = on_slot, .ctx = ctx};
    visit(&w, &out->embed, SLOT_MATRIX, c->vocab_size, c->hidden_size, "model.embed_tokens.weight");
    for (int32_t l = 0; l < c->num_hidden_layers; l++) {
        snprintf(w.prefix, sizeof w.prefix, "model.layers.%d.", l);
        walk_attention(&w, &out->layers[l]);
        walk_ffn(&w, &out->layers[l], c->layer_is_moe[l]);
    }
    w.prefix[0] = 0;
    visit(&w, &out->norm, SLOT_NORM, c->hidden_size, 1, "model.norm.weight");
    if (c->tie_word_embeddings)
        out->lm_head = out->embed;
    else
        visit(&w, &out->lm_head, SLOT_MATRIX, c->vocab_size, c->hidden_size, "lm_head.weight");
}

/* An empty table of the config's size. */
static void allocate(const struct model_config *c, struct weights *out) {
    memset(out, 0, sizeof *out);
    out->num_layers = c->num_hidden_layers;
    out->layers = xcalloc((size_t)c->num_hidden_layers, sizeof *out->layers);
    for (int32_t l = 0; l < c->num_hidden_layers; l++) {
        struct layer_source *layer = &out->layers[l];
        layer->num_experts = c->layer_is_moe[l] ? c->router.num_experts : 1;
        layer->experts = xcalloc((size_t)layer->num_experts, sizeof *layer->experts);
    }
}

/* -------------------------------------------------------------------------------- checkpoints */

struct opener {
    const char *dir;
    const struct model_config *config;
    const struct checkpoint *checkpoint;
    bool *used;          /* [tensors of the checkpoint] */
    struct error *error; /* never NULL */
    int64_t bytes;
};

/* Finds a tensor and marks it as used. */
static const struct tensor_view *take(struct opener *o, const char *name) {
    const struct tensor_view *t = checkpoint_find(o->checkpoint, name);
    if (t)
        o->used[t - checkpoint_at(o->checkpoint, 0)] = true;
    return t;
}

struct shape_text {
    char text[96];
};

static struct shape_text shape_of(const struct tensor_view *t) {
    struct shape_text s = {"["};
    size_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++)
        n += (size_t)snprintf(s.text + n, sizeof s.text - n, "%s%lld", i ? ", " : "",
                              (long long)t->shape[i]);
    snprintf(s.text + n, sizeof s.text - n, "]");
    return s;
}

static void check_shape(struct opener *o, const struct tensor_view *t, const struct slot *slot) {
    int32_t ndim = slot->kind == SLOT_NORM || slot->kind == SLOT_BIAS ? 1 : 2;
    if (t->ndim == ndim && t->shape[0] == slot->rows && (ndim == 1 || t->shape[1] == slot->cols))
        return;
    if (ndim == 1)
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s has shape %s, the config says [%d]",
                  t->path, t->name, shape_of(t).text, slot->rows);
    else
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s has shape %s, the config says [%d, %d]",
                  t->path, t->name, shape_of(t).text, slot->rows, slot->cols);
}

/* Scales of an FP8 tensor: <name>_scale, or <name>_scale_inv as DeepSeek calls those of blocks. In
 * spite of its name it multiplies too. */
static const struct tensor_view *find_scales(struct opener *o, const struct tensor_view *t,
                                             bool blocks) {
    char name[192], inverse[192];
    snprintf(name, sizeof name, "%s_scale", t->name);
    snprintf(inverse, sizeof inverse, "%s_scale_inv", t->name);
    const struct tensor_view *plain = take(o, name), *inv = take(o, inverse);
    if (inv && !blocks)
        error_add(o->error, ERR_BAD_FILE,
                  "%s: tensor %s has scales of blocks (%s), but quantization_config has no "
                  "weight_block_size",
                  t->path, t->name, inverse);
    else if (inv && plain)
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s has both %s and %s", t->path, t->name,
                  name, inverse);
    else if (!inv && !plain)
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s is F8_E4M3 but has no %s", t->path,
                  t->name, blocks ? inverse : name);
    else
        return inv ? inv : plain;
    return NULL;
}

static int32_t num_blocks(int32_t n) {
    return (n + FP8_BLOCK_SIZE - 1) / FP8_BLOCK_SIZE;
}

/* Which scaling the shape of the scales means for a matrix; false: none that is possible. */
static bool scaling_of(const struct tensor_view *s, const struct slot *slot, bool blocks,
                       enum fp8_scaling *out) {
    int64_t rows = s->ndim > 0 ? s->shape[0] : 1, cols = s->ndim > 1 ? s->shape[1] : 1;
    if (s->ndim > 2)
        return false;
    *out = blocks ? FP8_BLOCK : s->ndim == 2 || rows != 1 ? FP8_ROW : FP8_TENSOR;
    if (blocks)
        return s->ndim == 2 && rows == num_blocks(slot->rows) && cols == num_blocks(slot->cols);
    return *out == FP8_TENSOR || (rows == slot->rows && cols == 1);
}

/* Is each scale finite and positive? One of a row or a block of zeros may be 0. */
static bool check_scales(struct opener *o, const struct tensor_view *s, enum fp8_scaling scaling) {
    size_t n = s->bytes / dtype_bytes(s->dtype);
    for (size_t i = 0; i < n; i++) {
        float scale = dtype_load(s->dtype, s->data, (int64_t)i);
        if (isfinite(scale) && (scale > 0 || (scale == 0 && scaling != FP8_TENSOR)))
            continue;
        char which[32] = "";
        if (n > 1)
            snprintf(which, sizeof which, ", element %zu,", i);
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s%s is %g, a scale must be finite and %s 0",
                  s->path, s->name, which, (double)scale,
                  scaling == FP8_TENSOR ? "above" : "at least");
        return false;
    }
    return true;
}

static void explain_shape(struct opener *o, const struct tensor_view *s, const struct slot *slot,
                          bool blocks) {
    if (blocks)
        error_add(
            o->error, ERR_BAD_FILE,
            "%s: tensor %s has shape %s; scales of blocks of 128 x 128 of [%d, %d] have shape "
            "[%d, %d]",
            s->path, s->name, shape_of(s).text, slot->rows, slot->cols, num_blocks(slot->rows),
            num_blocks(slot->cols));
    else
        error_add(
            o->error, ERR_BAD_FILE,
            "%s: tensor %s has shape %s; a scale for the tensor has shape [] or [1], scales of "
            "rows have [%d] or [%d, 1]",
            s->path, s->name, shape_of(s).text, slot->rows, slot->rows);
}

/* Finds and checks the scales of FP8 tensor t, and puts them into the slot's source. */
static void open_scales(struct opener *o, const struct tensor_view *t, const struct slot *slot) {
    bool blocks = o->config->fp8_scaling == FP8_BLOCK;
    const struct tensor_view *s = find_scales(o, t, blocks);
    struct tensor_source *out = slot->source;
    if (!s)
        return;
    o->bytes += (int64_t)s->bytes;
    if (s->dtype == DTYPE_NONE || s->dtype == DTYPE_F8_E4M3)
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s is %s, a scale must be F32, BF16 or F16",
                  s->path, s->name, s->dtype_text);
    else if (!scaling_of(s, slot, blocks, &out->scaling))
        explain_shape(o, s, slot, blocks);
    else if (!check_scales(o, s, out->scaling))
        return;
    else if (out->scaling == FP8_TENSOR)
        out->scale = dtype_load(s->dtype, s->data, 0);
    else {
        out->scales = s->data;
        out->scales_dtype = s->dtype;
    }
}

static void open_slot(void *ctx, const struct slot *slot) {
    struct opener *o = ctx;
    const struct tensor_view *t = take(o, slot->name);
    if (!t) {
        error_add(o->error, ERR_BAD_FILE, "%s: tensor %s is missing", o->dir, slot->name);
        return;
    }
    check_shape(o, t, slot);
    if (t->dtype == DTYPE_NONE || (t->dtype == DTYPE_F8_E4M3 && slot->kind != SLOT_PROJECTION))
        error_add(o->error, t->dtype == DTYPE_NONE ? ERR_BAD_FILE : ERR_UNSUPPORTED,
                  "%s: tensor %s is %s; BF16, F16%s expected", t->path, t->name, t->dtype_text,
                  slot->kind == SLOT_PROJECTION ? ", F32 or F8_E4M3" : " or F32");
    *slot->source = (struct tensor_source){
        .data = t->data,
        .dtype = t->dtype,
        .rows = slot->rows,
        .cols = slot->cols,
        .scale = 1,
        .name = t->name,
    };
    if (t->dtype == DTYPE_F8_E4M3 && slot->kind == SLOT_PROJECTION)
        open_scales(o, t, slot);
    o->bytes += (int64_t)t->bytes;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Names the tensors that nothing asked for, the first few of them. */
static void warn_unused(const struct opener *o) {
    char names[512] = "";
    size_t unused = 0, len = 0, inputs = 0;
    for (size_t i = 0; i < checkpoint_num_tensors(o->checkpoint); i++) {
        const char *name = checkpoint_at(o->checkpoint, i)->name;
        if (o->used[i] || ends_with(name, "rotary_emb.inv_freq")) /* rope is computed */
            continue;
        if (ends_with(name, ".input_scale")) {
            inputs++;
            continue;
        }
        if (unused++ < 4 && len < sizeof names)
            len += (size_t)snprintf(names + len, sizeof names - len, "%s%s", len ? ", " : "", name);
    }
    if (unused)
        log_warn("%s: %zu tensor%s that the model does not use: %s%s", o->dir, unused,
                 unused == 1 ? "" : "s", names, unused > 4 ? ", ..." : "");
    if (inputs)
        log_info(
            "%s: %zu scale%s of activations (input_scale) ignored: activations stay unquantised",
            o->dir, inputs, inputs == 1 ? "" : "s");
}

/* q, k and v are one matrix in memory. */
static void check_fused(struct opener *o, const struct weights *w) {
    for (int32_t i = 0; i < w->num_layers; i++) {
        const struct layer_source *l = &w->layers[i];
        const struct tensor_source *const others[] = {&l->k, &l->v};
        for (int j = 0; j < 2; j++)
            if (l->q.dtype != DTYPE_NONE && others[j]->dtype != DTYPE_NONE &&
                others[j]->dtype != l->q.dtype)
                error_add(o->error, ERR_UNSUPPORTED,
                          "%s: tensor %s is %s, but %s is %s; q, k and v must have one dtype",
                          o->dir, others[j]->name, dtype_name(others[j]->dtype), l->q.name,
                          dtype_name(l->q.dtype));
    }
}

int weights_open(const char *model_dir, const struct model_config *config, struct weights *out,
                 struct error *error) {
    struct error own = {0};
    struct opener o = {.dir = model_dir, .config = config, .error = &own};
    memset(out, 0, sizeof *out);
    int rc = checkpoint_open(model_dir, &out->checkpoint, error);
    if (rc != 0)
        return rc;
    struct checkpoint *checkpoint = out->checkpoint;
    allocate(config, out);
    out->checkpoint = checkpoint;
    o.checkpoint = checkpoint;
    o.used = xcalloc(checkpoint_num_tensors(checkpoint), sizeof *o.used);
    walk(config, out, open_slot, &o);
    check_fused(&o, out);
    out->total_bytes = o.bytes;
    if (config->tie_word_embeddings)
        take(&o, "lm_head.weight"); /* stored all the same: the embedding is used */
    if (own.code) {
        error_add(error, own.code, "%s", own.text);
        if (error)
            error->problems += own.problems - 1;
        weights_close(out);
    } else {
        warn_unused(&o);
    }
    free(o.used);
    return own.code;
}

void weights_close(struct weights *w) {
    for (int32_t l = 0; l < w->num_layers; l++)
        free(w->layers[l].experts);
    free(w->layers);
    free(w->name_pool);
    checkpoint_close(w->checkpoint);
    memset(w, 0, sizeof *w);
}

/* ------------------------------------------------------------------------------------ dummies */

/* A bijection of 64 bits that mixes well (the finaliser of splitmix64). */
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash_name(const char *s) {
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return mix(h) | 1;
}

/* Exponent e such that elements uniform in +-2^e fit a matrix of that many columns. */
static int range_exponent(int32_t cols) {
    return -(31 - __builtin_clz((unsigned)cols)) / 2;
}

/* How many scales FP8 weights have. */
static int64_t num_scales(const struct tensor_source *t) {
    return t->scaling == FP8_TENSOR ? 1
           : t->scaling == FP8_ROW  ? t->rows
                                    : (int64_t)num_blocks(t->rows) * num_blocks(t->cols);
}

struct dummy_maker {
    const struct model_config *config;
    char *names; /* where the next name goes; NULL while lengths are counted */
    size_t name_bytes;
    int64_t bytes;
};

static void count_name(void *ctx, const struct slot *slot) {
    struct dummy_maker *m = ctx;
    m->name_bytes += strlen(slot->name) + 1;
}

static void make_dummy(void *ctx, const struct slot *slot) {
    struct dummy_maker *m = ctx;
    size_t len = strlen(slot->name) + 1;
    bool fp8 = m->config->fp8 && slot->kind == SLOT_PROJECTION;
    enum dtype dtype = fp8 ? DTYPE_F8_E4M3 : DTYPE_BF16;
    *slot->source = (struct tensor_source){
        .dtype = dtype,
        .rows = slot->rows,
        .cols = slot->cols,
        .scale = fp8 ? ldexpf(1, range_exponent(slot->cols) - 8) : 1,
        .scaling = fp8 ? m->config->fp8_scaling : FP8_TENSOR,
        .seed = slot->kind == SLOT_NORM ? 0 : hash_name(slot->name),
        .name = memcpy(m->names, slot->name, len),
    };
    m->names += len;
    m->bytes += (int64_t)slot->rows * slot->cols * (int64_t)dtype_bytes(dtype);
    if (fp8)
        m->bytes += 4 * num_scales(slot->source);
}

void weights_dummy(const struct model_config *config, struct weights *out) {
    struct dummy_maker m = {.config = config};
    allocate(config, out);
    walk(config, out, count_name, &m);
    m.names = out->name_pool = xmalloc(m.name_bytes);
    walk(config, out, make_dummy, &m);
    out->total_bytes = m.bytes;
}

/* The random bits of elements 8 * block to 8 * block + 7, a byte each. */
static uint64_t block_bits(uint64_t seed, int64_t block) {
    return mix(seed + (uint64_t)block * 0x9e3779b97f4a7c15u);
}

/* The power of two that a dummy's elements are multiples of. */
static float dummy_step(const struct tensor_source *t) {
    return ldexpf(1, (t->cols == 1 ? -3 : range_exponent(t->cols)) - 8);
}

/* What a random byte stands for: an odd number from -255 to 255, times the step. So the values are
 * uniform, symmetric around 0 but never 0, and have just the 8 significant bits of BF16. */
static float dummy_element(const struct tensor_source *t, float step, unsigned byte) {
    float odd = (float)(2 * (int)byte - 255);
    if (t->seed == 0)
        return 1;
    if (t->dtype == DTYPE_F8_E4M3)
        return e4m3_to_f32(e4m3_from_f32(odd));
    return odd * step;
}

float weights_dummy_value(const struct tensor_source *t, int64_t i) {
    return dummy_element(t, dummy_step(t), block_bits(t->seed, i >> 3) >> 8 * (i & 7) & 255);
}

float tensor_source_at(const struct tensor_source *t, int64_t i) {
    return t->data ? dtype_load(t->dtype, t->data, i) : weights_dummy_value(t, i);
}

float tensor_source_scale(const struct tensor_source *t, int32_t row, int32_t col) {
    int64_t at = row;
    if (!t->scales)
        return t->scale;
    if (t->scaling == FP8_BLOCK)
        at = (int64_t)(row / FP8_BLOCK_SIZE) * num_blocks(t->cols) + col / FP8_BLOCK_SIZE;
    return dtype_load(t->scales_dtype, t->scales, at);
}

/* Defines fill_<suffix>: elements [i, i + n) of the dummy from a table of the 256 stored values. */
#define DEFINE_FILL(suffix, type)                                                                  \
    static void fill_##suffix(uint64_t seed, int64_t i, int64_t n, const void *values, void *to) { \
        const type *value = values;                                                                \
        type *out = to;                                                                            \
        int64_t k = 0;                                                                             \
        for (; k < n && (i + k) % 8; k++)                                                          \
            out[k] = value[block_bits(seed, (i + k) / 8) >> 8 * ((i + k) % 8) & 255];              \
        for (; k + 8 <= n; k += 8) {                                                               \
            uint64_t bits = block_bits(seed, (i + k) / 8);                                         \
            for (int j = 0; j < 8; j++)                                                            \
                out[k + j] = value[bits >> 8 * j & 255];                                           \
        }                                                                                          \
        for (; k < n; k++)                                                                         \
            out[k] = value[block_bits(seed, (i + k) / 8) >> 8 * ((i + k) % 8) & 255];              \
    }

DEFINE_FILL(8, uint8_t)
DEFINE_FILL(16, uint16_t)
DEFINE_FILL(32, uint32_t)

void weights_dummy_fill(const struct tensor_source *t, int64_t row0, int32_t rows, int64_t col0,
                        int32_t cols, enum dtype dst, void *out) {
    uint32_t values[256]; /* of dst's type */
    size_t bytes = dtype_bytes(dst);
    CHECK(row0 >= 0 && rows >= 0 && row0 + rows <= t->rows && col0 >= 0 && cols >= 0 &&
              col0 + cols <= t->cols && bytes > 0,
          "%s [%d, %d]: rows %lld + %d, columns %lld + %d, dtype %d", t->name, t->rows, t->cols,
          (long long)row0, rows, (long long)col0, cols, (int)dst);
    float step = dummy_step(t);
    for (unsigned b = 0; b < 256; b++)
        dtype_store(dst, values, b, dummy_element(t, step, b));
    int64_t lines = rows, width = cols;
    if (cols == t->cols) { /* whole rows are one run */
        width *= lines;
        lines = 1;
    }
    for (int64_t r = 0; r < lines; r++) {
        int64_t first = (row0 + r) * t->cols + col0;
        void *to = (char *)out + (size_t)(r * width) * bytes;
        if (bytes == 1)
            fill_8(t->seed, first, width, values, to);
        else if (bytes == 2)
            fill_16(t->seed, first, width, values, to);
        else
            fill_32(t->seed, first, width, values, to);
    }
}
