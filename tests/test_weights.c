/* The walk over a checkpoint's tensors, each kind of wrong tensor, and dummies.
 *
 * The model is the smallest Skywork-MoE with unequal sizes: 2 layers, hidden 6, 3 heads of 2, 3
 * experts of 4, vocabulary 7. Its files are written from the dummy table, with edits.
 */
#include "host/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/shim.h"
#include "tests/tensor_file.h"

#define FP8 ",\"quantization_config\":{\"quant_method\":\"fp8\"}"

static void small_config(struct model_config *c, const char *more) {
    char json[1024];
    struct error e = {0};
    int n = snprintf(json, sizeof json,
                     "{\"model_type\":\"skywork_moe\",\"num_hidden_layers\":2,\"hidden_size\":6,"
                     "\"num_attention_heads\":3,\"intermediate_size\":4,\"vocab_size\":7,"
                     "\"num_experts\":[3],\"bos_token_id\":1%s}",
                     more);
    if (model_config_parse(json, (size_t)n, "config.json", c, &e) != 0)
        FAIL("%s", e.text);
}

enum { MAX_SCALES = 16 }; /* of a tensor, in these tests */

/* What to change in a good checkpoint, for one tensor; NULL fields stay. */
struct edit {
    const char *tensor; /* NULL: nothing */
    bool drop;
    const char *rename, *dtype, *shape;
    float scale_value; /* of the first element of an edited scale, where not 0 */
    const void *data;  /* of an edited dtype or shape; zeros when NULL */
    const char *also;  /* one more BF16 tensor of shape [1] */
};

static size_t shape_elements(const char *shape) {
    size_t n = 1;
    for (const char *s = shape; *s;) {
        char *end;
        n *= strtoul(s, &end, 10);
        s = *end ? end + 1 : end;
    }
    return n;
}

static void add(struct tensor_file *f, const struct edit *edit, const char *name, const char *dtype,
                const char *shape, const void *data, size_t bytes) {
    if (edit->tensor && strcmp(edit->tensor, name) == 0) {
        if (edit->drop)
            return;
        name = edit->rename ? edit->rename : name;
        if (edit->dtype || edit->shape) {
            dtype = edit->dtype ? edit->dtype : dtype;
            shape = edit->shape ? edit->shape : shape;
            size_t size = strcmp(dtype, "I64") == 0 ? 8 : dtype_bytes(dtype_parse(dtype));
            tensor_file_add(f, name, dtype, shape, edit->data, shape_elements(shape) * size);
            return;
        }
        if (edit->scale_value != 0) {
            float values[MAX_SCALES];
            memcpy(values, data, bytes);
            values[0] = edit->scale_value;
            tensor_file_add(f, name, dtype, shape, values, bytes);
            return;
        }
    }
    tensor_file_add(f, name, dtype, shape, data, bytes);
}

static void add_scales(struct tensor_file *f, const struct edit *edit,
                       const struct tensor_source *t) {
    bool blocks = t->scaling == FP8_BLOCK;
    int32_t grid[2] = {(t->rows + 127) / 128, (t->cols + 127) / 128};
    char name[128], shape[32] = "1";
    float values[MAX_SCALES];
    snprintf(name, sizeof name, "%s_scale%s", t->name, blocks ? "_inv" : "");
    if (blocks)
        snprintf(shape, sizeof shape, "%d, %d", grid[0], grid[1]);
    else if (strstr(t->name, "q_proj")) /* both forms: [] and [1] */
        shape[0] = 0;
    int32_t n = blocks ? grid[0] * grid[1] : 1;
    for (int32_t i = 0; i < n; i++)
        values[i] = t->scale;
    add(f, edit, name, "F32", shape, values, (size_t)n * sizeof *values);
}

static void add_source(struct tensor_file *f, const struct edit *edit,
                       const struct tensor_source *t) {
    char shape[32];
    uint16_t *data = xmalloc((size_t)t->rows * (size_t)t->cols * sizeof *data + 1);
    snprintf(shape, sizeof shape, t->cols == 1 ? "%d" : "%d, %d", t->rows, t->cols);
    weights_dummy_fill(t, 0, t->rows, 0, t->cols, t->dtype, data);
    add(f, edit, t->name, dtype_name(t->dtype), shape, data,
        (size_t)t->rows * (size_t)t->cols * dtype_bytes(t->dtype));
    if (t->dtype == DTYPE_F8_E4M3)
        add_scales(f, edit, t);
    free(data);
}

/* Calls fn with every source of w that is not absent; the tied head is the embedding. */
static void each_source(const struct weights *w,
                        void (*fn)(void *ctx, const struct tensor_source *t), void *ctx) {
    fn(ctx, &w->embed);
    for (int32_t l = 0; l < w->num_layers; l++) {
        const struct layer_source *x = &w->layers[l];
        const struct tensor_source *const list[] = {
            &x->attn_norm, &x->ffn_norm, &x->q,      &x->k,      &x->v,      &x->o,
            &x->q_bias,    &x->k_bias,   &x->v_bias, &x->q_norm, &x->k_norm, &x->router};
        for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
            if (list[i]->rows)
                fn(ctx, list[i]);
        for (int32_t e = 0; e < x->num_experts; e++) {
            fn(ctx, &x->experts[e].gate);
            fn(ctx, &x->experts[e].up);
            fn(ctx, &x->experts[e].down);
        }
    }
    fn(ctx, &w->norm);
    if (w->lm_head.name != w->embed.name)
        fn(ctx, &w->lm_head);
}

struct writer {
    struct tensor_file file;
    const struct edit *edit;
};

static void on_write(void *ctx, const struct tensor_source *t) {
    struct writer *w = ctx;
    add_source(&w->file, w->edit, t);
}

static void write_model(const char *dir, const struct model_config *c, const struct edit *edit) {
    struct writer writer = {.edit = edit};
    struct weights dummy;
    weights_dummy(c, &dummy);
    each_source(&dummy, on_write, &writer);
    if (edit->also)
        tensor_file_add(&writer.file, edit->also, "BF16", "1", "\x80\x3f", 2);
    tensor_file_write(&writer.file, in_folder(dir, "model.safetensors"));
    weights_close(&dummy);
}

static const struct edit no_edit;

static void expect_good_model_opens(const char *dir, const struct model_config *c) {
    struct weights w;
    struct error e = {0};
    write_model(dir, c, &no_edit);
    if (weights_open(dir, c, &w, &e) != 0)
        FAIL("%s", e.text);
    else
        weights_close(&w);
}

/* ----------------------------------------------------------------------------------- checkpoints
 */

struct comparison {
    struct tensor_source sources[64];
    int n, i;
};

static void on_collect(void *ctx, const struct tensor_source *t) {
    struct comparison *c = ctx;
    ASSERT_TRUE(c->n < 64);
    c->sources[c->n++] = *t;
}

static void on_compare(void *ctx, const struct tensor_source *t) {
    struct comparison *c = ctx;
    const struct tensor_source *d = &c->sources[c->i++];
    EXPECT_STR_EQ(t->name, d->name);
    EXPECT_INT_EQ(t->rows, d->rows);
    EXPECT_INT_EQ(t->cols, d->cols);
    EXPECT_INT_EQ(t->dtype, d->dtype);
    EXPECT_INT_EQ(t->scaling, d->scaling);
    EXPECT_NEAR(tensor_source_scale(t, t->rows - 1, t->cols - 1), d->scale, 0);
    EXPECT_INT_EQ(t->seed, 0);
    ASSERT_TRUE(t->data != NULL && d->data == NULL);
    for (int64_t i = 0; i < (int64_t)t->rows * t->cols; i++)
        ASSERT_TRUE(dtype_load(t->dtype, t->data, i) == weights_dummy_value(d, i));
}

static void expect_round_trip_of(const struct model_config *config) {
    const char *dir = scratch_folder("weights");
    struct comparison c = {.n = 0};
    struct weights dummy, w;
    struct error e = {0};
    write_model(dir, config, &no_edit);
    if (weights_open(dir, config, &w, &e) != 0) {
        FAIL("%s", e.text);
        return;
    }
    weights_dummy(config, &dummy);
    each_source(&dummy, on_collect, &c);
    each_source(&w, on_compare, &c);
    EXPECT_INT_EQ(c.i, c.n);
    EXPECT_INT_EQ(w.total_bytes, dummy.total_bytes);
    weights_close(&w);
    weights_close(&dummy);
    EXPECT_TRUE(w.layers == NULL && w.checkpoint == NULL);
}

static void expect_round_trip(const char *more) {
    struct model_config config;
    small_config(&config, more);
    expect_round_trip_of(&config);
}

TEST(Weights, TheTableHoldsWhatTheFileHolds) {
    expect_round_trip("");
    expect_round_trip(FP8);
    expect_round_trip(",\"tie_word_embeddings\":true");
}

TEST(Weights, ShapesFollowTheConfig) {
    struct model_config config;
    struct weights w;
    small_config(&config, FP8);
    weights_dummy(&config, &w);
    EXPECT_INT_EQ(w.num_layers, 2);
    EXPECT_INT_EQ(w.embed.rows * 100 + w.embed.cols, 706);
    EXPECT_INT_EQ(w.layers[1].router.rows * 100 + w.layers[1].router.cols, 306);
    EXPECT_INT_EQ(w.layers[1].num_experts, 3);
    const struct expert_source *x = &w.layers[1].experts[2];
    EXPECT_INT_EQ(x->gate.rows * 100 + x->gate.cols, 406);
    EXPECT_INT_EQ(x->down.rows * 100 + x->down.cols, 604);
    EXPECT_STR_EQ(x->gate.name, "model.layers.1.block_sparse_moe.experts.2.w1.weight");
    EXPECT_STR_EQ(x->up.name, "model.layers.1.block_sparse_moe.experts.2.w3.weight");
    EXPECT_STR_EQ(x->down.name, "model.layers.1.block_sparse_moe.experts.2.w2.weight");
    EXPECT_INT_EQ(x->gate.dtype, DTYPE_F8_E4M3);
    EXPECT_INT_EQ(w.layers[0].router.dtype, DTYPE_BF16);
    EXPECT_INT_EQ(w.lm_head.dtype, DTYPE_BF16);
    EXPECT_INT_EQ(w.layers[0].q_bias.rows, 0);
    weights_close(&w);
}

TEST(Weights, ATiedModelUsesTheEmbeddingEvenIfAHeadIsStored) {
    const char *dir = scratch_folder("weights_tied");
    struct model_config config;
    struct weights w;
    small_config(&config, "");
    write_model(dir, &config, &no_edit);
    config.tie_word_embeddings = true;
    ASSERT_INT_EQ(weights_open(dir, &config, &w, NULL), 0);
    EXPECT_TRUE(w.lm_head.data == w.embed.data);
    EXPECT_STR_EQ(w.lm_head.name, "model.embed_tokens.weight");
    weights_close(&w);
}

#define W1      "model.layers.1.block_sparse_moe.experts.2.w1.weight"
#define Q       "model.layers.0.self_attn.q_proj.weight"
#define Q_SCALE Q "_scale"
#define Q_INV   Q "_scale_inv"

TEST(Weights, OtherStoredTypesAndUnknownTensorsAreFine) {
    static const struct edit edits[] = {
        {.tensor = "model.norm.weight", .dtype = "F32"},
        {.tensor = W1, .dtype = "F16"},
        {.tensor = "lm_head.weight", .dtype = "F32"},
        {.also = "model.layers.0.self_attn.rotary_emb.inv_freq"},
        {.also = "model.layers.0.self_attn.kv_scale"},
    };
    const char *dir = scratch_folder("weights_fine");
    struct model_config config;
    small_config(&config, FP8);
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        struct weights w;
        struct error e = {0};
        write_model(dir, &config, &edits[i]);
        if (weights_open(dir, &config, &w, &e) != 0)
            FAIL("%s", e.text);
        else
            weights_close(&w);
    }
}

static const struct {
    struct edit edit;
    int code;
    const char *message;
} bad[] = {
    {{.tensor = W1, .drop = true}, ERR_BAD_FILE, "weights_bad: tensor " W1 " is missing"},
    {{.tensor = "lm_head.weight", .drop = true}, ERR_BAD_FILE, "tensor lm_head.weight is missing"},
    {{.tensor = "model.norm.weight", .rename = "norm.weight"},
     ERR_BAD_FILE,
     "tensor model.norm.weight is missing"},
    {{.tensor = W1, .shape = "6, 4"},
     ERR_BAD_FILE,
     "/model.safetensors: tensor " W1 " has shape [6, 4], the config says [4, 6]"},
    {{.tensor = W1, .shape = "24"}, ERR_BAD_FILE, W1 " has shape [24], the config says [4, 6]"},
    {{.tensor = W1, .shape = "1, 4, 6"}, ERR_BAD_FILE, W1 " has shape [1, 4, 6]"},
    {{.tensor = W1, .shape = ""}, ERR_BAD_FILE, W1 " has shape []"},
    {{.tensor = "model.norm.weight", .shape = "6, 1"},
     ERR_BAD_FILE,
     "model.norm.weight has shape [6, 1], the config says [6]"},
    {{.tensor = "model.embed_tokens.weight", .shape = "8, 6"},
     ERR_BAD_FILE,
     "model.embed_tokens.weight has shape [8, 6], the config says [7, 6]"},
    {{.tensor = W1, .dtype = "I64"},
     ERR_BAD_FILE,
     "/model.safetensors: tensor " W1 " is I64; BF16, F16, F32 or F8_E4M3 expected"},
    {{.tensor = "model.norm.weight", .dtype = "I64"},
     ERR_BAD_FILE,
     "tensor model.norm.weight is I64; BF16, F16 or F32 expected"},
    {{.tensor = "model.norm.weight", .dtype = "F8_E4M3"},
     ERR_UNSUPPORTED,
     "model.norm.weight is F8_E4M3"},
    {{.tensor = "model.layers.1.block_sparse_moe.gate.weight", .dtype = "F8_E4M3"},
     ERR_UNSUPPORTED,
     "gate.weight is F8_E4M3"},
    {{.tensor = "lm_head.weight", .dtype = "F8_E4M3"},
     ERR_UNSUPPORTED,
     "lm_head.weight is F8_E4M3"},
    {{.tensor = Q_SCALE, .drop = true},
     ERR_BAD_FILE,
     "/model.safetensors: tensor " Q " is F8_E4M3 but has no " Q_SCALE},
    {{.tensor = Q_SCALE, .rename = Q_INV},
     ERR_BAD_FILE,
     "/model.safetensors: tensor " Q " has scales of blocks (" Q_INV
     "), but quantization_config has "
     "no weight_block_size"},
    {{.tensor = Q_SCALE, .shape = "5"},
     ERR_BAD_FILE,
     "/model.safetensors: tensor " Q_SCALE " has shape [5]; a scale for the tensor has shape [] or "
     "[1], scales of rows have [6] or [6, 1]"},
    {{.tensor = Q_SCALE, .shape = "6, 2"}, ERR_BAD_FILE, Q_SCALE " has shape [6, 2]"},
    {{.tensor = Q_SCALE, .shape = "1, 6"}, ERR_BAD_FILE, Q_SCALE " has shape [1, 6]"},
    {{.tensor = Q_SCALE, .shape = "1, 1"}, ERR_BAD_FILE, Q_SCALE " has shape [1, 1]"},
    {{.tensor = Q_SCALE, .shape = "6, 1, 1"}, ERR_BAD_FILE, Q_SCALE " has shape [6, 1, 1]"},
    {{.tensor = Q_SCALE, .shape = "0"}, ERR_BAD_FILE, Q_SCALE " has shape [0]"},
    {{.also = Q_INV}, ERR_BAD_FILE, Q " has scales of blocks (" Q_INV ")"},
    {{.tensor = Q, .dtype = "BF16"},
     ERR_UNSUPPORTED,
     "self_attn.k_proj.weight is F8_E4M3, but " Q " is BF16; q, k and v must have one dtype"},
    {{.tensor = Q_SCALE, .dtype = "I64"}, ERR_BAD_FILE, Q_SCALE " is I64"},
    {{.tensor = Q_SCALE, .dtype = "F8_E4M3"}, ERR_BAD_FILE, Q_SCALE " is F8_E4M3"},
    {{.tensor = Q_SCALE, .scale_value = NAN},
     ERR_BAD_FILE,
     "/model.safetensors: tensor " Q_SCALE " is nan"},
    {{.tensor = Q_SCALE, .scale_value = INFINITY}, ERR_BAD_FILE, Q_SCALE " is inf"},
    {{.tensor = Q_SCALE, .scale_value = -1}, ERR_BAD_FILE, Q_SCALE " is -1"},
    {{.tensor = Q_SCALE, .dtype = "F32"}, ERR_BAD_FILE, Q_SCALE " is 0"},
};

static void expect_refused(const char *dir, const struct model_config *config,
                           const struct edit *edit, int code, const char *message) {
    struct weights w;
    struct error e = {0};
    write_model(dir, config, edit);
    int rc = weights_open(dir, config, &w, &e);
    EXPECT_TRUE(w.layers == NULL && w.checkpoint == NULL);
    int32_t problems = edit->tensor && strcmp(edit->tensor, Q) == 0 ? 2 : 1; /* k and v differ */
    if (rc != code || e.problems != problems || !strstr(e.text, message))
        FAIL("%s: %d, %d problems: %s", message, rc, e.problems, e.text);
    expect_good_model_opens(dir, config);
}

TEST(Weights, RefusesEachBadTensorAndThenOpensAGoodModel) {
    const char *dir = scratch_folder("weights_bad");
    struct model_config config;
    small_config(&config, FP8);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refused(dir, &config, &bad[i].edit, bad[i].code, bad[i].message);
}

TEST(Weights, ScalesOfTwoBytesAreRead) {
    const char *dir = scratch_folder("weights_scale");
    static const struct edit edit = {.tensor = Q_SCALE, .drop = true, .also = Q_SCALE};
    struct model_config config;
    struct weights w;
    small_config(&config, FP8);
    write_model(dir, &config, &edit);
    ASSERT_INT_EQ(weights_open(dir, &config, &w, NULL), 0);
    EXPECT_NEAR(w.layers[0].q.scale, 1, 0);
    weights_close(&w);
}

/* Rows: hidden 6 x 6 has six scales, of either shape and of any float type. */
TEST(Weights, AScaleForEachRowIsRead) {
    static const struct edit edits[] = {{.tensor = Q_SCALE, .dtype = "F32", .shape = "6"},
                                        {.tensor = Q_SCALE, .dtype = "F32", .shape = "6, 1"},
                                        {.tensor = Q_SCALE, .dtype = "BF16", .shape = "6, 1"},
                                        {.tensor = Q_SCALE, .dtype = "F16", .shape = "6"}};
    const char *dir = scratch_folder("weights_rows");
    struct model_config config;
    small_config(&config, FP8);
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        float values[6] = {1, 0.5f, 0, 2, 0.25f, 4}; /* a row of zeros may have scale 0 */
        char stored[6 * sizeof(float)];
        struct edit edit = edits[i];
        struct weights w;
        edit.data = stored;
        for (int64_t r = 0; r < 6; r++)
            dtype_store(dtype_parse(edit.dtype), stored, r, values[r]);
        write_model(dir, &config, &edit);
        ASSERT_INT_EQ(weights_open(dir, &config, &w, NULL), 0);
        EXPECT_INT_EQ(w.layers[0].q.scaling, FP8_ROW);
        EXPECT_INT_EQ(w.layers[0].k.scaling, FP8_TENSOR);
        for (int32_t r = 0; r < 6; r++)
            EXPECT_NEAR(tensor_source_scale(&w.layers[0].q, r, 5), values[r], 0);
        weights_close(&w);
        values[3] = NAN;
        for (int64_t r = 0; r < 6; r++)
            dtype_store(dtype_parse(edit.dtype), stored, r, values[r]);
        expect_refused(dir, &config, &edit, ERR_BAD_FILE, Q_SCALE ", element 3, is nan");
    }
}

/* Hidden 300 and FFN 130: grids of scales of [1, 3] for q, [3, 1] for o, [2, 3] and [3, 2]. */
static void wide_config(struct model_config *c) {
    small_config(c, ",\"quantization_config\":{\"quant_method\":\"fp8\","
                    "\"weight_block_size\":[128,128]}");
    c->hidden_size = 300;
    c->moe_intermediate_size = 130;
}
#define W2_INV "model.layers.1.block_sparse_moe.experts.2.w2.weight_scale_inv"

TEST(Weights, AScaleForEachBlockIsRead) {
    const char *dir = scratch_folder("weights_blocks");
    const float values[6] = {1, 0.5f, 0.125f, 2, 0, 4};
    const struct edit edit = {.tensor = W2_INV, .dtype = "F32", .shape = "3, 2", .data = values};
    struct model_config config;
    struct weights w;
    wide_config(&config);
    write_model(dir, &config, &edit);
    ASSERT_INT_EQ(weights_open(dir, &config, &w, NULL), 0);
    const struct tensor_source *down = &w.layers[1].experts[2].down;
    EXPECT_INT_EQ(down->scaling, FP8_BLOCK);
    for (int32_t row = 0; row < 300; row++)
        for (int32_t col = 0; col < 130; col++)
            ASSERT_TRUE(tensor_source_scale(down, row, col) == values[row / 128 * 2 + col / 128]);
    weights_close(&w);
    expect_round_trip_of(&config);
}

TEST(Weights, RefusesWrongScalesOfBlocks) {
    static const struct {
        struct edit edit;
        const char *message;
    } wrong[] = {
        {{.tensor = W2_INV, .drop = true}, "w2.weight is F8_E4M3 but has no " W2_INV},
        {{.tensor = W2_INV, .dtype = "F32", .shape = "2, 3"},
         W2_INV " has shape [2, 3]; scales of blocks of 128 x 128 of [300, 130] have shape [3, 2]"},
        {{.tensor = W2_INV, .dtype = "F32", .shape = "6"}, W2_INV " has shape [6]"},
        {{.tensor = W2_INV, .dtype = "F32", .shape = ""}, W2_INV " has shape []"},
        {{.tensor = W2_INV, .dtype = "F32", .shape = "300, 1"}, W2_INV " has shape [300, 1]"},
        {{.tensor = W2_INV, .dtype = "I64"}, W2_INV " is I64, a scale must be F32, BF16 or F16"},
        {{.also = "model.layers.1.block_sparse_moe.experts.2.w2.weight_scale"}, "has both"},
        {{.tensor = W2_INV, .scale_value = -1}, W2_INV ", element 0, is -1"},
    };
    const char *dir = scratch_folder("weights_blocks");
    struct model_config config;
    wide_config(&config);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        expect_refused(dir, &config, &wrong[i].edit, ERR_BAD_FILE, wrong[i].message);
}

TEST(Weights, ScalesOfActivationsAreIgnored) {
    static const struct edit edit = {.also = "model.layers.0.self_attn.q_proj.input_scale"};
    const char *dir = scratch_folder("weights_inputs");
    struct model_config config;
    struct weights w;
    small_config(&config, FP8);
    write_model(dir, &config, &edit);
    EXPECT_INT_EQ(weights_open(dir, &config, &w, NULL), 0);
    weights_close(&w);
}

TEST(Weights, ReportsAllProblemsAtOnce) {
    const char *dir = scratch_folder("weights_many");
    struct tensor_file f = {0};
    struct model_config config;
    struct weights w;
    struct error e = {0};
    small_config(&config, "");
    tensor_file_add(&f, "model.norm.weight", "BF16", "5", NULL, 10);
    tensor_file_write(&f, in_folder(dir, "model.safetensors"));
    EXPECT_INT_EQ(weights_open(dir, &config, &w, &e), ERR_BAD_FILE);
    EXPECT_INT_EQ(e.problems,
                  1 + 2 * (2 + 4 + 1 + 9) + 1 + 1); /* all but the norm, and its shape */
    EXPECT_TRUE(strstr(e.text, "embed_tokens.weight is missing") != NULL);
    EXPECT_TRUE(strstr(e.text, "experts.0.w2.weight is missing") != NULL);
    weights_close(&w); /* a second close is harmless */
    EXPECT_INT_EQ(weights_open("/nonexistent", &config, &w, NULL), ERR_NOT_FOUND);
    weights_close(&w);
}

/* --------------------------------------------------------------------------------------- dummies
 */

TEST(Weights, FillEqualsTheValuesRoundedForEveryTypeAndWindow) {
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3};
    struct tensor_source sources[] = {
        {.dtype = DTYPE_BF16, .rows = 5, .cols = 37, .scale = 1, .seed = 12345},
        {.dtype = DTYPE_F8_E4M3, .rows = 5, .cols = 37, .scale = 0.5f, .seed = 99},
        {.dtype = DTYPE_BF16, .rows = 5, .cols = 37, .scale = 1, .seed = 0},
        {.dtype = DTYPE_BF16, .rows = 185, .cols = 1, .scale = 1, .seed = 7},
    };
    char out[5 * 37 * 4], want[4];
    for (size_t s = 0; s < 4; s++)
        for (size_t d = 0; d < 4; d++)
            for (int32_t col = 0; col < sources[s].cols; col++)
                for (int32_t row = 0; row < 3; row++) {
                    const struct tensor_source *t = &sources[s];
                    size_t bytes = dtype_bytes(types[d]);
                    int32_t rows = t->rows - row - (col > 2), cols = t->cols - col;
                    weights_dummy_fill(t, row, rows, col, cols, types[d], out);
                    for (int64_t i = 0; i < (int64_t)rows * cols; i++) {
                        int64_t at = (row + i / cols) * t->cols + col + i % cols;
                        dtype_store(types[d], want, 0, weights_dummy_value(t, at));
                        ASSERT_MEM_EQ(out + (size_t)i * bytes, want, bytes);
                    }
                }
}

TEST(Weights, DummyValuesAreUniformWithTheRightSpread) {
    static const int32_t widths[] = {2, 6, 63, 64, 2048, 4608, 12288, 28672};
    for (size_t k = 0; k < sizeof widths / sizeof widths[0]; k++)
        for (int fp8 = 0; fp8 < 2; fp8++) {
            struct tensor_source t = {
                .dtype = DTYPE_BF16, .rows = 4096, .cols = widths[k], .scale = 1, .seed = 1000 + k};
            struct model_config c;
            struct weights w;
            if (fp8) { /* the scale that weights_dummy gives to a projection of that width */
                small_config(&c, FP8);
                c.hidden_size = widths[k];
                weights_dummy(&c, &w);
                t = w.layers[0].q;
                t.rows = 4096;
                weights_close(&w);
            }
            double sum = 0, squares = 0;
            int n = 4096 * 2;
            for (int i = 0; i < n; i++) {
                double v = (double)weights_dummy_value(&t, i) * (double)t.scale;
                sum += v;
                squares += v * v;
            }
            double std = sqrt(squares / n), relative = std * sqrt(widths[k]);
            EXPECT_NEAR(sum / n, 0, 5 * std / sqrt(n));
            EXPECT_TRUE(relative > 0.55 && relative < 1.25);
        }
}

TEST(Weights, TensorsOfADummyDifferAndRunsAgree) {
    struct model_config config;
    struct weights a, b;
    int same = 0;
    small_config(&config, "");
    weights_dummy(&config, &a);
    weights_dummy(&config, &b);
    const struct tensor_source *q = &a.layers[0].q, *k = &a.layers[0].k;
    for (int i = 0; i < 36; i++) {
        EXPECT_TRUE(weights_dummy_value(q, i) == weights_dummy_value(&b.layers[0].q, i));
        same += weights_dummy_value(q, i) == weights_dummy_value(k, i);
        EXPECT_TRUE(weights_dummy_value(&a.norm, i) == 1);
    }
    EXPECT_INT_LT(same, 6);
    weights_close(&a);
    weights_close(&b);
}
