/* cpu_attention: attention of a mixed batch as units of up to ATTENTION_ROWS rows.
 *
 * A unit is (sequence, KV head, rows), a row one query head of one token: the query heads that
 * share a KV head and the tokens of a prefill chunk share each pass over keys and values. A unit's
 * partitions of the context are computed and merged in order (attention_impl.h). When there are
 * fewer units than threads, each partition is a task of its own, and the results are kept and
 * merged in the same order, so that the bits are the same.
 */
#include <math.h>
#include <string.h>

#include "host/cpu/cpu_backend.h"

struct attention_unit {
    int32_t seq, kv_head;
    int32_t row0, num_rows;   /* of the sequence's rows for this KV head: token * heads + head */
    int32_t part0, num_parts; /* partitions of the context that its rows see */
    int32_t slot0;            /* when split: its first result */
};

struct attention_job {
    struct backend *b;
    const struct attention_args *a;
    int32_t num_units;
};

size_t cpu_attention_unit_bytes(void) {
    return sizeof(struct attention_unit);
}

static int32_t heads_of(const struct backend *b, int32_t kv_head) {
    return b->head_offsets[kv_head + 1] - b->head_offsets[kv_head];
}

/* The keys [*first, *last) that token row t sees. */
static void visible_keys(const struct attention_args *a, int32_t t, int32_t *first, int32_t *last) {
    *last = a->batch->positions[t] + 1;
    *first = a->window > 0 && *last > a->window ? *last - a->window : 0;
}

static void add_units(struct attention_job *j, int32_t seq, int32_t kv_head) {
    struct backend *b = j->b;
    const struct batch *batch = j->a->batch;
    int32_t heads = heads_of(b, kv_head), t0 = batch->cu_seqlens[seq];
    int32_t rows = (batch->cu_seqlens[seq + 1] - t0) * heads;
    for (int32_t row0 = 0; row0 < rows; row0 += ATTENTION_ROWS) {
        int32_t n = rows - row0 < ATTENTION_ROWS ? rows - row0 : ATTENTION_ROWS;
        int32_t first, last, unused;
        visible_keys(j->a, t0 + row0 / heads, &first, &unused);
        visible_keys(j->a, t0 + (row0 + n - 1) / heads, &unused, &last);
        CHECK(j->num_units < b->max_units, "more than %d attention units", b->max_units);
        b->units[j->num_units++] = (struct attention_unit){
            .seq = seq,
            .kv_head = kv_head,
            .row0 = row0,
            .num_rows = n,
            .part0 = first / PARTITION_KEYS,
            .num_parts = (last - 1) / PARTITION_KEYS - first / PARTITION_KEYS + 1,
        };
    }
}

/* Copies the unit's queries together and finds what each row sees. */
static struct attend_args prepare_unit(const struct attention_job *j,
                                       const struct attention_unit *u, struct scratch *scratch) {
    const struct attention_args *a = j->a;
    int32_t D = a->head_dim, heads = heads_of(j->b, u->kv_head);
    const int32_t *head = j->b->head_list + j->b->head_offsets[u->kv_head];
    for (int32_t r = 0; r < u->num_rows; r++) {
        int32_t t = a->batch->cu_seqlens[u->seq] + (u->row0 + r) / heads;
        const float *q =
            (const float *)a->qkv + t * a->ld + (int64_t)head[(u->row0 + r) % heads] * D;
        memcpy(scratch->q + (int64_t)r * D, q, (size_t)D * sizeof *q);
        visible_keys(a, t, &scratch->first_key[r], &scratch->last_key[r]);
    }
    return (struct attend_args){
        .dtype = a->kv.dtype,
        .head_dim = D,
        .keys = (const char *)a->kv.data + cpu_keys_offset(a->kv.dtype, u->kv_head, D),
        .values = (const char *)a->kv.data + cpu_values_offset(a->kv.dtype, u->kv_head, D),
        .block_bytes = cpu_kv_block_bytes(a->kv.dtype, a->num_kv_heads, D),
        .blocks = a->batch->block_tables + (int64_t)u->seq * a->batch->max_blocks,
        .num_rows = u->num_rows,
        .first = scratch->first_key,
        .last = scratch->last_key,
        .q = scratch->q,
        .scale = a->scale,
        .scores = scratch->scores,
        .panel = scratch->panel,
    };
}

/* Rows that have seen nothing: should one stay so, its output is 0 / 0. */
static void start_total(struct scratch *scratch, int32_t num_rows, int32_t head_dim) {
    for (int32_t r = 0; r < num_rows; r++) {
        scratch->total.max[r] = -INFINITY;
        scratch->total.sum[r] = 0;
    }
    memset(scratch->total.out, 0,
           (size_t)num_rows * (size_t)attend_width(head_dim) * sizeof *scratch->total.out);
}

static void store_total(const struct attention_job *j, const struct attention_unit *u,
                        const struct attend_sums *total) {
    const struct attention_args *a = j->a;
    int32_t D = a->head_dim, heads = heads_of(j->b, u->kv_head);
    const int32_t *head = j->b->head_list + j->b->head_offsets[u->kv_head];
    for (int32_t r = 0; r < u->num_rows; r++) {
        int32_t t = a->batch->cu_seqlens[u->seq] + (u->row0 + r) / heads;
        float *out =
            (float *)a->out + ((int64_t)t * a->num_heads + head[(u->row0 + r) % heads]) * D;
        const float *sum = total->out + (int64_t)r * attend_width(D);
        float inverse = 1 / total->sum[r];
        for (int32_t d = 0; d < D; d++)
            out[d] = sum[d] * inverse;
    }
}

static void unit_task(void *arg, int32_t task, int32_t thread) {
    const struct attention_job *j = arg;
    const struct attention_unit *u = &j->b->units[task];
    struct scratch *scratch = &j->b->scratch[thread];
    struct attend_args args = prepare_unit(j, u, scratch);
    start_total(scratch, u->num_rows, args.head_dim);
    for (int32_t p = u->part0; p < u->part0 + u->num_parts; p++) {
        j->b->kernels->attend_partition(&args, p, &scratch->partition);
        j->b->kernels->attend_merge(&scratch->total, &scratch->partition, u->num_rows,
                                    args.head_dim);
    }
    store_total(j, u, &scratch->total);
}

/* ---- split by partitions ------------------------------------------------------------------------
 */

/* Result `slot`: max, sum, then out. */
static struct attend_sums split_result(const struct backend *b, int32_t slot) {
    int64_t width = attend_width(b->config.head_dim) + 2;
    float *p = b->split + slot * ATTENTION_ROWS * width;
    return (struct attend_sums){p, p + ATTENTION_ROWS, p + 2 * ATTENTION_ROWS};
}

static void split_task(void *arg, int32_t task, int32_t thread) {
    const struct attention_job *j = arg;
    const struct attention_unit *u = j->b->units;
    while (u + 1 < j->b->units + j->num_units && u[1].slot0 <= task)
        u++;
    struct attend_args args = prepare_unit(j, u, &j->b->scratch[thread]);
    struct attend_sums out = split_result(j->b, task);
    j->b->kernels->attend_partition(&args, u->part0 + task - u->slot0, &out);
}

static void merge_unit(const struct attention_job *j, const struct attention_unit *u) {
    struct scratch *scratch = &j->b->scratch[0];
    start_total(scratch, u->num_rows, j->a->head_dim);
    for (int32_t p = 0; p < u->num_parts; p++) {
        struct attend_sums from = split_result(j->b, u->slot0 + p);
        j->b->kernels->attend_merge(&scratch->total, &from, u->num_rows, j->a->head_dim);
    }
    store_total(j, u, &scratch->total);
}

/* Numbers the partitions of all units; returns how many there are. */
static int32_t number_slots(struct attention_job *j) {
    int32_t slots = 0;
    for (int32_t i = 0; i < j->num_units; i++) {
        j->b->units[i].slot0 = slots;
        slots += j->b->units[i].num_parts;
    }
    return slots;
}

static int64_t attention_work(const struct attention_job *j) {
    int64_t work = 0;
    for (int32_t i = 0; i < j->num_units; i++)
        work += (int64_t)j->b->units[i].num_rows * j->b->units[i].num_parts;
    return work * PARTITION_KEYS * j->a->head_dim;
}

void cpu_attention(struct backend *b, const struct attention_args *a) {
    struct attention_job job = {.b = b, .a = a};
    if (a->num_heads == 0 || a->num_kv_heads == 0)
        return;
    for (int32_t s = 0; s < a->batch->num_seqs; s++)
        for (int32_t kv = 0; kv < a->num_kv_heads; kv++)
            add_units(&job, s, kv);
    if (job.num_units < b->config.threads) {
        int32_t slots = number_slots(&job);
        if (slots > job.num_units && slots <= b->max_split) {
            cpu_run(b, split_task, &job, slots, attention_work(&job));
            for (int32_t i = 0; i < job.num_units; i++)
                merge_unit(&job, &b->units[i]);
            return;
        }
    }
    cpu_run(b, unit_task, &job, job.num_units, attention_work(&job));
}
