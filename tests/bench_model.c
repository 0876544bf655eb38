/* bench_model: the forward pass of a synthetic model against the limits of this machine.
 *
 *   bench_model [--model DIR] [--threads N] [--ranks N] [--isa NAME] [--context N]
 *               [--decode N] [--prefill N]
 *
 * Weights are made up (as --load-format dummy); only DIR/config.json is read. One line a case:
 * decode at several batch sizes as tok/s and the GB/s at which weights are read (the bytes of the
 * experts that the router really picked, attention, router and lm_head), prefill as tok/s and
 * GFLOP/s. --decode or --prefill runs that one case. The limits move with what else a shared
 * machine does: they are measured before every step of a case, and its line compares the medians.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/mem.h"
#include "host/model_internal.h"
#include "tests/bench_machine.h"

enum { MAX_BATCH = 64, MAX_PREFILL = 512, REPEATS = 15 };

struct bench {
    struct model_config config;
    struct weights weights;
    struct model *model;
    int32_t threads, ranks, context;
    const char *isa;
    int32_t decode, prefill; /* or 0: all cases */
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

static struct times run_case(struct bench *b, struct step *s, int32_t seqs, int32_t count,
                             int32_t context, double (*limit)(int32_t threads, int32_t passes)) {
    double seconds[REPEATS], limits[REPEATS];
    float *logits;
    for (int32_t i = -2; i < REPEATS; i++) {
        double now = limit(b->threads, 1);
        make_step(s, b, seqs, count, context, (uint32_t)(i + 2));
        int64_t start = clock_us();
        model_run(b->model, &s->batch, &logits);
        if (i >= 0) {
            seconds[i] = (double)(clock_us() - start) / 1e6;
            limits[i] = now;
        }
    }
    return (struct times){machine_median(seconds, REPEATS), machine_median(limits, REPEATS)};
}

static void run_decode(struct bench *b, struct step *s, int32_t seqs, double *batch_one) {
    struct times t = run_case(b, s, seqs, 1, b->context, machine_read_gbps);
    double rate = seqs / t.seconds, gbps = step_bytes(b, seqs) / 1e9 / t.seconds;
    if (seqs == 1)
        *batch_one = rate;
    printf("decode  batch %3d  context %4d  %8.2f ms  %8.1f tok/s", seqs, b->context,
           t.seconds * 1e3, rate);
    if (*batch_one > 0)
        printf(" (%4.1fx batch 1)", rate / *batch_one);
    printf("  %6.2f GB/s = %3.0f%% of the read loop's %.1f\n", gbps, 100 * gbps / t.limit, t.limit);
    fflush(stdout);
}

static void run_prefill(struct bench *b, struct step *s, int32_t count) {
    struct times t = run_case(b, s, 1, count, 0, machine_fma_gflops);
    /* lm_head runs for one row only, the embedding for none */
    double params = (double)model_config_active_parameters(&b->config) -
                    2.0 * b->config.vocab_size * b->config.hidden_size;
    double gflops = 2 * params * count / 1e9 / t.seconds;
    printf(
        "prefill tokens %4d               %8.2f ms  %8.1f tok/s                   %6.1f GFLOP/s = "
        "%3.0f%% of the FMA peak's %.0f\n",
        count, t.seconds * 1e3, count / t.seconds, gflops, 100 * gflops / t.limit, t.limit);
    fflush(stdout);
}

static int open_model(struct bench *b, const char *dir, struct error *error) {
    if (model_config_load(dir, &b->config, error) != 0)
        return error->code;
    weights_dummy(&b->config, &b->weights);
    const struct ops *ops = cpu_ops(b->isa, error);
    if (!ops)
        return error->code;
    int32_t len = b->context + MAX_PREFILL;
    struct model_options o = {
        .ops = ops,
        .world_size = b->ranks,
        .threads = b->threads,
        .max_tokens = MAX_PREFILL,
        .max_seqs = MAX_BATCH,
        .max_logits = MAX_BATCH,
        .max_model_len = len,
        .num_kv_blocks = (b->context / KV_BLOCK_SIZE + 2) * MAX_BATCH + MAX_PREFILL / KV_BLOCK_SIZE,
        .progress = true,
    };
    return model_create(&b->config, &b->weights, &o, &b->model, error);
}

static int run(struct bench *b, const char *dir) {
    static const int32_t batches[] = {1, 2, 4, 8, 16, 32, 64}, prefills[] = {16, 64, 128, 512};
    struct error error = {0};
    struct buffer text = {0};
    struct step *s = xcalloc(1, sizeof *s);
    double batch_one = 0;
    if (open_model(b, dir, &error) != 0) {
        fprintf(stderr, "bench_model: %s\n", error.text);
        return 1;
    }
    s->tables =
        xcalloc((size_t)MAX_BATCH * (size_t)(b->context / KV_BLOCK_SIZE + 40), sizeof *s->tables);
    model_describe(b->model, &text);
    printf("%.*s", (int)text.len, text.data);
    if (b->decode > 0 || b->prefill > 0) {
        if (b->decode > 0)
            run_decode(b, s, b->decode, &batch_one);
        if (b->prefill > 0)
            run_prefill(b, s, b->prefill);
    } else {
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
            run_decode(b, s, batches[i], &batch_one);
        for (size_t i = 0; i < sizeof prefills / sizeof *prefills; i++)
            run_prefill(b, s, prefills[i]);
    }
    model_destroy(b->model);
    weights_close(&b->weights);
    buffer_deinit(&text);
    free(s->tables);
    free(s);
    return 0;
}

int main(int argc, char **argv) {
    const char *dir = "configs/bench-moe-1b";
    struct bench b = {.threads = (int32_t)sysconf(_SC_NPROCESSORS_ONLN),
                      .ranks = 1,
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
        else
            argc = 0;
    }
    if (argc % 2 == 0 || b.decode < 0 || b.decode > MAX_BATCH || b.prefill < 0 ||
        b.prefill > MAX_PREFILL) {
        fprintf(stderr,
                "usage: bench_model [--model DIR] [--threads N] [--ranks N] [--isa NAME] "
                "[--context N] [--decode N (<= %d)] [--prefill N (<= %d)]\n",
                MAX_BATCH, MAX_PREFILL);
        return 2;
    }
    return run(&b, dir);
}
