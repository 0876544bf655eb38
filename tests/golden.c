#include "tests/golden.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/shim.h"

enum { MAX_CONTEXT = 160, MAX_CHUNK = 64, MAX_SEQS = 4 };

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

char **golden_names(int32_t *count) {
    char path[256], **names = NULL;
    *count = 0;
    snprintf(path, sizeof path, "%s/golden", shim_data_dir());
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') {
            names = xrealloc(names, (size_t)(*count + 1) * sizeof *names);
            names[(*count)++] = xstrdup(e->d_name);
        }
    if (d)
        closedir(d);
    qsort(names, (size_t)*count, sizeof *names, by_name);
    return names;
}

static struct layout_options layout_options(const struct model_config *c,
                                            const struct golden_options *o) {
    struct layout_options l = {.expert_parallel_size = o->expert_parallel_size};
    struct layout whole;
    int64_t sum = 0;
    if (!o->memory)
        return l;
    struct layout_options one = {.elements = layout_elements_of(c, DTYPE_NONE)};
    CHECK(layout_make(c, 1, &one, &whole, NULL) == 0, "one rank");
    for (int32_t r = 0; r < o->ranks; r++)
        sum += o->memory[r];
    for (int32_t r = 0; r < o->ranks; r++)
        l.memory[r] =
            whole.sizes.replicated + layout_bytes(&whole, 0).weights * 5 / 2 * o->memory[r] / sum;
    l.elements = one.elements;
    return l;
}

/* Config, weights and the reference's answers. */
static int open_files(struct golden *g, const char *name, struct error *error) {
    char path[320];
    memset(g, 0, sizeof *g);
    snprintf(g->dir, sizeof g->dir, "%s/golden/%s", shim_data_dir(), name);
    int rc = model_config_load(g->dir, &g->config, error);
    if (rc == 0)
        rc = weights_open(g->dir, &g->config, &g->weights, error);
    if (rc != 0)
        return rc;
    snprintf(path, sizeof path, "%s/golden.json", g->dir);
    g->doc = json_parse_file(path, 1 << 20, error);
    if (!g->doc)
        return ERR_INTERNAL;
    snprintf(path, sizeof path, "%s/golden.safetensors", g->dir);
    return safetensors_open(path, &g->logits, error);
}

int golden_try(struct golden *g, const char *name, const struct golden_options *o,
               struct error *error) {
    int rc = open_files(g, name, error);
    if (rc != 0)
        return rc;
    struct model_options m = {
        .ops = o->ops,
        .num_ranks = o->ranks ? o->ranks : 1,
        .threads = o->threads ? o->threads : 1,
        .layout = layout_options(&g->config, o),
        .max_tokens = MAX_CHUNK,
        .max_seqs = MAX_SEQS,
        .max_logits = MAX_CHUNK,
        .max_model_len = MAX_CONTEXT,
        .kv_dtype = o->kv_dtype,
        .num_kv_blocks = MAX_SEQS * MAX_CONTEXT / KV_BLOCK_SIZE,
        .fp8_activations = o->fp8_activations,
        .comm_timeout_us = o->comm_timeout_us,
        .group = o->group,
        .gpus = o->gpus,
        .gpu_memory_utilization = 0.9f,
        .allreduce = o->allreduce,
        .allreduce_dtype = o->allreduce_dtype,
        .batch_invariant = o->batch_invariant,
        .enforce_eager = o->enforce_eager,
        .embedding_on_host = o->embedding_on_host,
    };
    g->fetch = o->fetch;
    return model_create(&g->config, &g->weights, &m, &g->model, error);
}

bool golden_open(struct golden *g, const char *name, const struct golden_options *o) {
    struct error error = {0};
    if (golden_try(g, name, o, &error) == 0)
        return true;
    FAIL("%s: %s", g->dir, error.text);
    return false;
}

void golden_close(struct golden *g) {
    model_destroy(g->model);
    weights_close(&g->weights);
    safetensors_close(g->logits);
    json_decref(g->doc);
}

static json_t *prompt_at(const struct golden *g, int32_t prompt) {
    return json_array_get(json_object_get(g->doc, "prompts"), (size_t)prompt);
}

int32_t golden_num_prompts(const struct golden *g) {
    return (int32_t)json_array_size(json_object_get(g->doc, "prompts"));
}

int32_t golden_ids(const struct golden *g, int32_t prompt, const char *key, int32_t *out,
                   int32_t max) {
    json_t *ids = json_object_get(prompt_at(g, prompt), key);
    int32_t n = (int32_t)json_array_size(ids);
    for (int32_t i = 0; i < n && i < max; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    return n < max ? n : max;
}

const float *golden_logits(const struct golden *g, int32_t prompt) {
    const char *name = json_string_value(json_object_get(prompt_at(g, prompt), "logits"));
    const struct tensor_view *t = safetensors_find(g->logits, name);
    return t ? t->data : NULL;
}

static void run_chunk(struct golden *g, const int32_t *tokens, int32_t first, int32_t count,
                      int32_t block0, float *out) {
    int32_t positions[MAX_CHUNK], slots[MAX_CHUNK], rows[MAX_CHUNK];
    int32_t blocks[MAX_CONTEXT / KV_BLOCK_SIZE], cu[2] = {0, count}, len = first + count;
    int32_t V = g->config.vocab_size;
    float *logits;
    for (int32_t i = 0; i < MAX_CONTEXT / KV_BLOCK_SIZE; i++)
        blocks[i] = block0 + i;
    for (int32_t i = 0; i < count; i++) {
        positions[i] = first + i;
        slots[i] =
            (block0 + positions[i] / KV_BLOCK_SIZE) * KV_BLOCK_SIZE + positions[i] % KV_BLOCK_SIZE;
        rows[i] = i;
    }
    struct batch batch = {
        .num_tokens = count,
        .num_seqs = 1,
        .tokens = tokens + first,
        .positions = positions,
        .cu_seqlens = cu,
        .seq_lens = &len,
        .block_tables = blocks,
        .max_blocks = MAX_CONTEXT / KV_BLOCK_SIZE,
        .slot_mapping = slots,
        .num_logits = count,
        .logits_rows = rows,
    };
    struct error e = {0};
    int rc = model_run(g->model, &batch, &logits, &e);
    CHECK(rc == 0, "model_run: %s", e.text);
    size_t bytes = (size_t)count * (size_t)V * sizeof *out;
    if (g->fetch)
        g->fetch(out, logits, bytes);
    else
        memcpy(out, logits, bytes);
}

void golden_run(struct golden *g, const int32_t *tokens, int32_t first, int32_t count,
                int32_t block0, float *out) {
    for (int32_t done = 0; done < count;) {
        int32_t n = count - done < MAX_CHUNK ? count - done : MAX_CHUNK;
        run_chunk(g, tokens, first + done, n, block0, out + (int64_t)done * g->config.vocab_size);
        done += n;
    }
}

int32_t golden_argmax(const float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

double golden_std(const float *x, int64_t n) {
    double mean = 0, var = 0;
    for (int64_t i = 0; i < n; i++)
        mean += (double)x[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        var += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)n;
    return sqrt(var);
}

double golden_relative_error(const float *a, const float *b, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        worst = d > worst || isnan(d) ? d : worst;
    }
    return worst / golden_std(b, n);
}

double golden_rows_off(const float *a, const float *b, int32_t rows, int32_t V, double bound) {
    double off = 0, std = golden_std(b, (int64_t)rows * V);
    for (int32_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int32_t i = 0; i < V; i++) {
            double d = (double)a[(int64_t)r * V + i] - (double)b[(int64_t)r * V + i];
            sum += d * d;
        }
        off += !(sqrt(sum / V) / std <= bound);
    }
    return off / rows;
}
