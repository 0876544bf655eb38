/* bench_model: the forward pass of a synthetic model against the limits of this machine.
 *
 *   bench_model [--model DIR] [--threads N] [--ranks N] [--isa NAME] [--gpus N or LIST]
 *               [--allreduce NAME] [--context N] [--decode N] [--prefill N] [--repeats N]
 *               [--seconds N] [--json FILE]
 *
 * Weights are made up (as --load-format dummy); only DIR/config.json is read. One line a case:
 * decode at several batch sizes as tok/s and the GB/s at which weights are read (the bytes of as
 * many experts as random choices hit, attention, router and lm_head), prefill as tok/s and
 * GFLOP/s. --decode or --prefill runs that one case. The limits move with what else a shared
 * machine does: they are measured before every step of a case, and its line compares the medians.
 * After --seconds no new case starts, and what is left is printed as not run.
 *
 * With --gpus a step is the forward pass and the greedy choice of each sequence's token, as the
 * engine does them, from recorded graphs in decode; --threads is for making the weights. The limits
 * are a copy within the first GPU's memory (bytes read and written) and cuBLAS, measured once, and
 * as many times that as there are GPUs. --gpus 0,0 makes two ranks on one GPU, which shows what
 * they say to each other, and nothing of the speed of two GPUs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/cuda.h"
#include "host/mem.h"
#include "host/model_internal.h"
#include "host/sample_job.h"
#include "tests/bench_machine.h"

enum { MAX_BATCH = 64, CPU_PREFILL = 512, MAX_PREFILL = 2048, MAX_REPEATS = 99 };

struct bench {
    struct model_config config;
    struct weights weights;
    struct model *model;
    int32_t threads, ranks, context;
    const char *isa;
    int32_t decode, prefill;           /* or 0: all cases */
    int32_t max_prefill;               /* tokens that a step has room for */
    int32_t repeats;                   /* steps of a case */
    int64_t deadline_us;               /* clock_us() after which no case starts; 0: none */
    int32_t gpus[MAX_RANKS], num_gpus; /* one a rank; none: the CPU */
    const char *allreduce;
    struct gpu_limits limits;    /* of the GPUs together */
    struct buffer rows, not_run; /* JSON */
};

/* One batch: `seqs` sequences with `count` new tokens each after `context` old ones. */
struct step {
    struct batch batch;
    int32_t tokens[MAX_PREFILL], positions[MAX_PREFILL], slots[MAX_PREFILL], rows[MAX_BATCH];
    int32_t cu[MAX_BATCH + 1], lens[MAX_BATCH], *tables;
};

static void make_step(struct step *s, const struct bench *b, int32_t seqs, int32_t count,
                      int32_t context, uint32_t salt) {
    int32_t blocks = (context + count + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE, t = 0;
    for (int32_t i = 0; i < seqs; i++) {
        s->cu[i] = t;
        s->lens[i] = context + count;
        for (int32_t k = 0; k < blocks; k++)
            s->tables[i * blocks + k] = i * blocks + k;
        for (int32_t k = 0; k < count; k++, t++) {
            int32_t p = context + k;
            s->tokens[t] = (int32_t)((2654435761u * (uint32_t)(t + 1) + salt * 97u) >> 8) %
                           b->config.vocab_size;
            s->positions[t] = p;
            s->slots[t] =
                s->tables[i * blocks + p / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + p % KV_BLOCK_SIZE;
        }
        s->rows[i] = t - 1;
    }
    s->cu[seqs] = t;
    s->batch = (struct batch){
        .num_tokens = t,
        .num_seqs = seqs,
        .tokens = s->tokens,
        .positions = s->positions,
        .cu_seqlens = s->cu,
        .seq_lens = s->lens,
        .block_tables = s->tables,
        .max_blocks = blocks,
        .slot_mapping = s->slots,
        .num_logits = seqs,
        .logits_rows = s->rows,
    };
}

static double bytes_of(const struct tensor_source *t) {
    return (double)t->rows * t->cols * (double)dtype_bytes(t->dtype);
}

/* Bytes of the weights that a batch reads: experts by the expected number of distinct ones when
 * each token picks K of E at random (dummy routers are random). */
static double step_bytes(const struct bench *b, int32_t num_tokens) {
    const struct router_config *r = &b->config.router;
    double total = bytes_of(&b->weights.lm_head);
    for (int32_t i = 0; i < b->weights.num_layers; i++) {
        const struct layer_source *l = &b->weights.layers[i];
        double expert = bytes_of(&l->experts[0].gate) + bytes_of(&l->experts[0].up) +
                        bytes_of(&l->experts[0].down);
        double distinct = 1, miss = 1;
        if (l->router.rows > 0) {
            for (int32_t t = 0; t < num_tokens; t++)
                miss *= 1 - (double)r->num_experts_per_tok / r->num_experts;
            distinct = r->num_experts * (1 - miss);
        }
        total += bytes_of(&l->q) + bytes_of(&l->k) + bytes_of(&l->v) + bytes_of(&l->o) +
                 bytes_of(&l->router) + distinct * expert;
    }
    return total;
}

/* Medians of a case's steps, and of a limit measured before each. */
struct times {
    double seconds, limit;
};

/* The most likely token of each row, where the logits lie on the GPU: also waits for the step. */
static void choose_tokens(struct bench *b, int32_t rows) {
    static const struct sampling_params greedy = {
        .top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    struct sample_job jobs[MAX_BATCH];
    static struct sample_outcome outcomes[MAX_BATCH];
    struct error error = {0};
    for (int32_t i = 0; i < rows; i++)
        jobs[i] = (struct sample_job){.kind = SAMPLE_DRAW, .row = i, .args = {.params = &greedy}};
    CHECK(model_sample(b->model, jobs, rows, outcomes, &error) == 0, "%s", error.text);
    for (int32_t i = 0; i < rows; i++)
        CHECK(outcomes[i].rc == 0, "the logits of row %d hold a NaN", i);
}

static void run_step(struct bench *b, struct step *s, int32_t seqs) {
    struct error error = {0};
    float *logits;
    CHECK(model_run(b->model, &s->batch, &logits, &error) == 0, "%s", error.text);
    if (model_samples(b->model))
        choose_tokens(b, seqs);
}

/* Steps of one shape, after two that load and record what the others use; `limit` is measured
 * before each (CPU). */
static struct times run_case(struct bench *b, struct step *s, int32_t seqs, int32_t count,
                             int32_t context, double (*limit)(int32_t threads, int32_t passes)) {
    double seconds[MAX_REPEATS], limits[MAX_REPEATS];
    for (int32_t i = -2; i < b->repeats; i++) {
        double now = b->num_gpus > 0 ? 0 : limit(b->threads, 1);
        make_step(s, b, seqs, count, context, (uint32_t)(i + 2));
        int64_t start = clock_us();
        run_step(b, s, seqs);
        if (i >= 0) {
            seconds[i] = (double)(clock_us() - start) / 1e6;
            limits[i] = now;
        }
    }
    return (struct times){machine_median(seconds, b->repeats), machine_median(limits, b->repeats)};
}

/* Is there time for a case? If not, says and records that it does not run. */
static bool in_time(struct bench *b, const char *kind, int32_t n) {
    if (b->deadline_us == 0 || clock_us() < b->deadline_us)
        return true;
    printf("%s %d: not run: out of time\n", kind, n);
    buffer_printf(&b->not_run, "%s\n    {\"name\": \"%s %d\", \"reason\": \"out of time\"}",
                  b->not_run.len ? "," : "", kind, n);
    return false;
}

static void record(struct bench *b, const char *kind, int32_t n, double ms, double tokens_per_s,
                   double rate, const char *rate_name, double limit) {
    buffer_printf(&b->rows,
                  "%s\n    {\"name\": \"%s %d\", \"ms\": %.4f, \"tokens_per_s\": %.2f, "
                  "\"%s\": %.2f, \"limit\": %.2f, \"share\": %.4f}",
                  b->rows.len ? "," : "", kind, n, ms, tokens_per_s, rate_name, rate, limit,
                  limit > 0 ? rate / limit : 0);
}

static void run_decode(struct bench *b, struct step *s, int32_t seqs, double *batch_one) {
    if (!in_time(b, "decode", seqs))
        return;
    struct times t = run_case(b, s, seqs, 1, b->context, machine_read_gbps);
    if (b->num_gpus > 0)
        t.limit = b->limits.copy_gbps;
    double rate = seqs / t.seconds, gbps = step_bytes(b, seqs) / 1e9 / t.seconds;
    if (seqs == 1)
        *batch_one = rate;
    printf("decode  batch %3d  context %4d  %8.2f ms  %8.1f tok/s", seqs, b->context,
           t.seconds * 1e3, rate);
    if (*batch_one > 0)
        printf(" (%4.1fx batch 1)", rate / *batch_one);
    printf("  %6.2f GB/s = %3.0f%% of the %s's %.1f\n", gbps, 100 * gbps / t.limit,
           b->num_gpus > 0 ? "copy" : "read loop", t.limit);
    fflush(stdout);
    record(b, "decode", seqs, t.seconds * 1e3, rate, gbps, "gbps", t.limit);
}

static void run_prefill(struct bench *b, struct step *s, int32_t count) {
    if (!in_time(b, "prefill", count))
        return;
    struct times t = run_case(b, s, 1, count, 0, machine_fma_gflops);
    if (b->num_gpus > 0)
        t.limit = b->limits.bf16_gflops;
    /* lm_head runs for one row only, the embedding for none */
    double params = (double)model_config_active_parameters(&b->config) -
                    2.0 * b->config.vocab_size * b->config.hidden_size;
    double gflops = 2 * params * count / 1e9 / t.seconds;
    printf(
        "prefill tokens %4d               %8.2f ms  %8.1f tok/s                   %6.1f GFLOP/s = "
        "%3.0f%% of %s %.0f\n",
        count, t.seconds * 1e3, count / t.seconds, gflops, 100 * gflops / t.limit,
        b->num_gpus > 0 ? "cuBLAS's" : "the FMA peak's", t.limit);
    fflush(stdout);
    record(b, "prefill", count, t.seconds * 1e3, count / t.seconds, gflops, "gflops", t.limit);
}

/* The first GPU's limits for each GPU that is named. */
static int find_limits(struct bench *b, struct error *error) {
    int32_t distinct = 0;
    if (!machine_gpu(b->config.hidden_size < 1024, &b->limits))
        return error_set(error, ERR_UNSUPPORTED, "--gpus: the limits of the GPU are not known");
    for (int32_t i = 0; i < b->num_gpus; i++) {
        int32_t k = 0;
        while (b->gpus[k] != b->gpus[i])
            k++;
        distinct += k == i;
    }
    b->limits.copy_gbps *= distinct;
    b->limits.bf16_gflops *= distinct;
    return 0;
}

static int open_model(struct bench *b, const char *dir, struct error *error) {
    if (model_config_load(dir, &b->config, error) != 0)
        return error->code;
    weights_dummy(&b->config, &b->weights);
    const struct ops *ops =
        b->num_gpus > 0 ? cuda_ops(b->gpus, b->num_gpus, false, error) : cpu_ops(b->isa, error);
    if (!ops || (b->num_gpus > 0 && find_limits(b, error) != 0))
        return error->code;
    int32_t len = b->context + b->max_prefill;
    struct model_options o = {
        .ops = ops,
        .num_ranks = b->num_gpus > 0 ? b->num_gpus : b->ranks,
        .threads = b->threads,
        .max_tokens = b->max_prefill,
        .max_seqs = MAX_BATCH,
        .max_logits = MAX_BATCH,
        .max_model_len = len,
        .num_kv_blocks =
            (b->context / KV_BLOCK_SIZE + 2) * MAX_BATCH + b->max_prefill / KV_BLOCK_SIZE,
        .progress = true,
        .gpus = b->num_gpus > 0 ? b->gpus : NULL,
        .allreduce = b->allreduce,
        .gpu_memory_utilization = 0.95f,
    };
    return model_create(&b->config, &b->weights, &o, &b->model, error);
}

static int write_json(const struct bench *b, const char *dir, const char *path) {
    FILE *f = fopen(path, "w");
    if (!f) {
        perror(path);
        return 1;
    }
    fprintf(f, "{\n  \"program\": \"bench_model\",\n  \"model\": \"%s\",\n", dir);
    fprintf(f, "  \"kernels\": \"%s: %s\",\n", b->model->ops->name,
            b->model->ops->describe(b->model->rank[0].backend));
    fprintf(f, "  \"context\": %d,\n  \"repeats\": %d,\n  \"load_seconds\": %.2f,\n", b->context,
            b->repeats, b->model->load_seconds);
    fprintf(f, "  \"cases\": [%.*s\n  ],\n", (int)b->rows.len, b->rows.len ? b->rows.data : "");
    fprintf(f, "  \"not_run\": [%.*s\n  ]\n}\n", (int)b->not_run.len,
            b->not_run.len ? b->not_run.data : "");
    if (fclose(f) != 0) {
        perror(path);
        return 1;
    }
    return 0;
}

static void run_all(struct bench *b, struct step *s) {
    static const int32_t batches[] = {1, 2, 4, 8, 16, 32, 64};
    static const int32_t prefills[] = {16, 64, 128, 512, 2048};
    double batch_one = 0;
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
        run_decode(b, s, batches[i], &batch_one);
    for (size_t i = 0; i < sizeof prefills / sizeof *prefills; i++)
        if (prefills[i] <= b->max_prefill)
            run_prefill(b, s, prefills[i]);
}

static int run(struct bench *b, const char *dir, const char *json) {
    struct error error = {0};
    struct buffer text = {0};
    struct step *s = xcalloc(1, sizeof *s);
    double batch_one = 0;
    if (open_model(b, dir, &error) != 0) {
        fprintf(stderr, "bench_model: %s\n", error.text);
        return 1;
    }
    s->tables = xcalloc((size_t)MAX_BATCH * (size_t)(b->context / KV_BLOCK_SIZE + 2) +
                            (size_t)(b->max_prefill / KV_BLOCK_SIZE),
                        sizeof *s->tables);
    model_describe(b->model, &text);
    printf("%.*s", (int)text.len, text.data);
    if (b->decode > 0 || b->prefill > 0) {
        if (b->decode > 0)
            run_decode(b, s, b->decode, &batch_one);
        if (b->prefill > 0)
            run_prefill(b, s, b->prefill);
    } else {
        run_all(b, s);
    }
    int rc = json ? write_json(b, dir, json) : 0;
    model_destroy(b->model);
    weights_close(&b->weights);
    buffer_deinit(&text);
    buffer_deinit(&b->rows);
    buffer_deinit(&b->not_run);
    free(s->tables);
    free(s);
    return rc;
}

/* "2" is GPUs 0 and 1, "0,0" a list; false for neither. */
static bool parse_gpus(struct bench *b, const char *text) {
    bool list = strchr(text, ',') != NULL;
    char *end = (char *)(uintptr_t)text;
    for (b->num_gpus = 0; *text && b->num_gpus < MAX_RANKS; text = end + (*end == ',')) {
        long n = strtol(text, &end, 10);
        if (end == text || (*end && *end != ',') || n < 0 || n > (list ? 1023 : MAX_RANKS))
            return false;
        if (list)
            b->gpus[b->num_gpus++] = (int32_t)n;
        for (int32_t i = 0; !list && i < n; i++)
            b->gpus[b->num_gpus++] = i;
    }
    return !*text && b->num_gpus > 0;
}

int main(int argc, char **argv) {
    const char *dir = "configs/bench-moe-1b", *json = NULL;
    struct bench b = {.threads = (int32_t)sysconf(_SC_NPROCESSORS_ONLN),
                      .ranks = 1,
                      .repeats = 15,
                      .context = 128,
                      .isa = "auto"};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--model"))
            dir = argv[i + 1];
        else if (!strcmp(argv[i], "--threads"))
            b.threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--ranks"))
            b.ranks = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--isa"))
            b.isa = argv[i + 1];
        else if (!strcmp(argv[i], "--context"))
            b.context = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--decode"))
            b.decode = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--prefill"))
            b.prefill = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--repeats"))
            b.repeats = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--seconds"))
            b.deadline_us = clock_us() + (int64_t)atoi(argv[i + 1]) * 1000000;
        else if (!strcmp(argv[i], "--gpus") && parse_gpus(&b, argv[i + 1]))
            continue;
        else if (!strcmp(argv[i], "--allreduce"))
            b.allreduce = argv[i + 1];
        else if (!strcmp(argv[i], "--json"))
            json = argv[i + 1];
        else
            argc = 0;
    }
    if (argc % 2 == 0 || b.decode < 0 || b.decode > MAX_BATCH || b.prefill < 0 ||
        b.prefill > MAX_PREFILL || b.repeats < 3 || b.repeats > MAX_REPEATS) {
        fprintf(stderr,
                "usage: bench_model [--model DIR] [--threads N] [--ranks N] [--isa NAME] "
                "[--gpus N or LIST] [--allreduce NAME] [--context N] [--decode N (<= %d)] "
                "[--prefill N (<= %d)] [--repeats N (3 to %d)] [--seconds N] [--json FILE]\n",
                MAX_BATCH, MAX_PREFILL, MAX_REPEATS);
        return 2;
    }
    b.max_prefill = b.num_gpus > 0 || b.prefill > CPU_PREFILL ? MAX_PREFILL : CPU_PREFILL;
    return run(&b, dir, json);
}
