/* staged_calls: the calls of a step (staged.h). */
#include <string.h>

#include "cuda/staged_internal.h"

/* Columns of the rows that plain arrays are cut into. */
enum { PLAIN_ROW = 4096 };

/* ---- calls and their memory ------------------------------------------------------------------ */

void staged_set_step(struct staged *s, int32_t rank, const uint32_t *step_number) {
    s->ranks[rank].step_number = step_number;
}

void staged_begin_step(struct staged *s, int32_t rank) {
    s->ranks[rank].calls = 0;
}

/* A slot of a rank's box. */
static char *slot_at(const struct staged *s, int32_t box, int32_t index) {
    return s->ranks[box].box + (size_t)index * s->slot.bytes;
}

/* A call without memory. */
static struct allreduce_channel next_call(struct staged *s, int32_t rank) {
    struct staged_rank *r = &s->ranks[rank];
    CHECK(r->step_number && r->calls < ALLREDUCE_CALLS, "rank %d, call %d of a step", rank,
          r->calls);
    return (struct allreduce_channel){
        .rank = rank,
        .num_ranks = s->num_ranks,
        .step = r->step_number,
        .call = r->calls++,
        .timeout_ns = s->timeout_ns,
        .abort = s->abort,
        .status = status_word(s, rank),
    };
}

struct allreduce_channel staged_next_channel(struct staged *s, int32_t rank,
                                             enum allreduce_way way) {
    struct allreduce_channel c = next_call(s, rank);
    int32_t n = s->num_ranks;
    size_t at = way == ALLREDUCE_LINES   ? 0
                : way == ALLREDUCE_FLAGS ? s->slot.flags_at
                                         : s->slot.copies_at;
    for (int32_t p = 0; p < n; p++) {
        c.to[p] = slot_at(s, p, rank) + at;
        c.from[p] = slot_at(s, rank, p) + at;
        c.in[p] = (s->peers ? slot_at(s, rank, n + p) : slot_at(s, p, n)) + at;
    }
    c.num_out = s->peers ? n : 1;
    for (int32_t p = 0; p < c.num_out; p++)
        c.out[p] = (s->peers ? slot_at(s, p, n + rank) : slot_at(s, rank, n)) + at;
    return c;
}

enum allreduce_way staged_way(const struct staged *s, enum allreduce_payload payload,
                              int32_t num_rows, int32_t row_len) {
    int32_t n = s->num_ranks;
    int64_t bytes = num_rows * allreduce_row_bytes(payload, row_len);
    size_t lines = allreduce_message_bytes(ALLREDUCE_LINES, payload, num_rows, row_len, n);
    size_t flags = allreduce_message_bytes(ALLREDUCE_FLAGS, payload, num_rows, row_len, n);
    if (payload != PAYLOAD_F8 && bytes <= s->lines_bytes && lines <= s->slot.lines)
        return ALLREDUCE_LINES;
    return bytes <= s->flags_bytes && flags <= s->slot.flags ? ALLREDUCE_FLAGS : ALLREDUCE_COPIES;
}

/* ---- by copy engines ------------------------------------------------------------------------- */

/* A piece of an array: rows [row0, row0 + num_rows), of which rank r owns a slice. */
struct piece {
    int32_t row0, num_rows, num_ranks;
    size_t row_bytes;
};

static size_t slice_begin(const struct piece *p, int32_t r) {
    return (size_t)((int64_t)p->num_rows * r / p->num_ranks) * p->row_bytes;
}

static size_t slice_bytes(const struct piece *p, int32_t r) {
    return slice_begin(p, r + 1) - slice_begin(p, r);
}

static void copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                 cudaStream_t stream) {
    if (bytes)
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream));
}

/* Where the messages of other ranks' slices are when they have come: where they are with peers,
 * else copied to `staging`. The rank's own is `own`. */
static struct allreduce_parts fetch(const struct staged *s, const struct allreduce_channel *c,
                                    const char *const *from, char *staging, const char *own,
                                    const size_t *bytes, cudaStream_t stream) {
    struct allreduce_parts parts = {{0}};
    for (int32_t i = 1; i < s->num_ranks; i++) {
        int32_t p = (c->rank + i) % s->num_ranks;
        const char *message = from[p] + COPIES_HEADER;
        parts.part[p] = s->peers ? message : staging + (size_t)p * s->slot.copies;
        if (!s->peers)
            copy(staging + (size_t)p * s->slot.copies, message, bytes[p], cudaMemcpyHostToDevice,
                 stream);
    }
    parts.part[c->rank] = own;
    return parts;
}

/* All flags of other ranks' messages. */
static void await(const struct staged *s, const struct allreduce_channel *c,
                  const char *const *from, cudaStream_t stream) {
    struct allreduce_flags flags = {{0}};
    for (int32_t p = 0; p < s->num_ranks; p++)
        if (p != c->rank)
            flags.flag[p] = (uint32_t *)(void *)(uintptr_t)from[p];
    allreduce_wait_launch(c, &flags, stream);
}

static void reduce_piece(struct staged *s, const struct allreduce_channel *c,
                         const struct allreduce_array *a, enum allreduce_payload payload,
                         const struct piece *p, cudaStream_t stream) {
    struct staged_rank *r = &s->ranks[c->rank];
    enum cudaMemcpyKind kind = s->peers ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost;
    struct allreduce_flags flags = {{0}};
    size_t own = slice_bytes(p, c->rank), bytes[ALLREDUCE_MAX_RANKS];
    int32_t n = s->num_ranks;

    /* Everyone's slice of this rank's part. */
    allreduce_pack_launch(r->packed, a, payload, p->row0, p->num_rows, stream);
    for (int32_t i = 1; i < n; i++) {
        int32_t d = (c->rank + i) % n;
        copy(c->to[d] + COPIES_HEADER, r->packed + slice_begin(p, d), slice_bytes(p, d), kind,
             stream);
        flags.flag[d] = (uint32_t *)(void *)c->to[d];
    }
    allreduce_signal_launch(c, &flags, stream);

    /* The sum of this rank's slice. */
    await(s, c, c->from, stream);
    for (int32_t i = 0; i < n; i++)
        bytes[i] = own;
    struct allreduce_parts parts =
        fetch(s, c, c->from, r->received, r->packed + slice_begin(p, c->rank), bytes, stream);
    allreduce_sum_launch(r->summed, &parts, n, payload, (int32_t)(own / p->row_bytes), a->row_len,
                         stream);
    memset(&flags, 0, sizeof flags);
    for (int32_t i = 0; i < c->num_out; i++) {
        int32_t d = s->peers ? (c->rank + i) % n : 0;
        if (s->peers && d == c->rank)
            continue;
        copy(c->out[d] + COPIES_HEADER, r->summed, own, kind, stream);
        flags.flag[d] = (uint32_t *)(void *)c->out[d];
    }
    allreduce_signal_launch(c, &flags, stream);

    /* All slices. */
    await(s, c, c->in, stream);
    for (int32_t i = 0; i < n; i++)
        bytes[i] = slice_bytes(p, i);
    parts = fetch(s, c, c->in, r->gathered, r->summed, bytes, stream);
    allreduce_finish_launch(a, &parts, n, payload, p->row0, p->num_rows, stream);
}

/* In pieces whose slices fit into a slot. */
static void reduce_by_copies(struct staged *s, int32_t rank, const struct allreduce_array *a,
                             enum allreduce_payload payload, cudaStream_t stream) {
    size_t row_bytes = (size_t)allreduce_row_bytes(payload, a->row_len);
    int32_t most = (int32_t)(s->slot.copies / row_bytes) * s->num_ranks;
    for (int32_t row0 = 0; row0 < a->num_rows; row0 += most) {
        int32_t left = a->num_rows - row0;
        struct piece p = {row0, left < most ? left : most, s->num_ranks, row_bytes};
        struct allreduce_channel c = staged_next_channel(s, rank, ALLREDUCE_COPIES);
        reduce_piece(s, &c, a, payload, &p, stream);
    }
}

static void reduce(struct staged *s, int32_t rank, const struct allreduce_array *a,
                   enum allreduce_payload payload, cudaStream_t stream) {
    if (a->num_rows == 0)
        return;
    enum allreduce_way way = staged_way(s, payload, a->num_rows, a->row_len);
    if (way == ALLREDUCE_COPIES) {
        reduce_by_copies(s, rank, a, payload, stream);
    } else {
        struct allreduce_channel c = staged_next_channel(s, rank, way);
        allreduce_launch(&c, a, way, payload, s->num_blocks, stream);
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

void staged_allreduce_norm(struct staged *s, int32_t rank, const void *partial,
                           const struct norm_args *norm, cudaStream_t stream) {
    struct allreduce_array a = {
        .partial = partial,
        .rows = norm->rows,
        .num_rows = norm->num_tokens,
        .row_len = norm->hidden_size,
        .count = norm->rows ? 0 : (int64_t)norm->num_tokens * norm->hidden_size,
        .norm = *norm,
    };
    reduce(s, rank, &a, s->payload, stream);
}

void staged_allreduce_rows(struct staged *s, int32_t rank, float *out, const float *hidden,
                           const void *partial, const int32_t *rows, int32_t num_rows,
                           int32_t hidden_size, cudaStream_t stream) {
    struct allreduce_array a = {
        .partial = partial,
        .rows = rows,
        .num_rows = num_rows,
        .row_len = hidden_size,
        .out = out,
        .add = hidden,
    };
    reduce(s, rank, &a, s->payload, stream);
}

void staged_allreduce(struct staged *s, int32_t rank, void *data, int64_t count,
                      cudaStream_t stream) {
    int64_t row = count < PLAIN_ROW ? count : PLAIN_ROW;
    struct allreduce_array a = {
        .partial = data,
        .num_rows = count > 0 ? (int32_t)((count + row - 1) / row) : 0,
        .row_len = (int32_t)row,
        .count = count,
        .out = data,
    };
    reduce(s, rank, &a, s->payload == PAYLOAD_F64 ? PAYLOAD_F64 : PAYLOAD_F32, stream);
}

/* ---- logits ---------------------------------------------------------------------------------- */

/* Rows of logits to rank 0, through a place for each rank in the segment. Everyone waits until rank
 * 0 has them: then the places may be used again. */
static void gather_rows(struct staged *s, int32_t rank, const struct staged_gather *g, int32_t row0,
                        int32_t num_rows, cudaStream_t stream) {
    struct allreduce_channel c = next_call(s, rank);
    struct allreduce_flags all = {{0}}, own = {{0}}, done = {{0}};
    size_t rows = (size_t)num_rows, pitch = (size_t)g->vocab_size * sizeof(float);
    for (int32_t r = 1; r < s->num_ranks; r++)
        all.flag[r] = (uint32_t *)(void *)(s->gather_flags + r * WORD_STRIDE);
    own.flag[rank] = all.flag[rank];
    done.flag[0] = (uint32_t *)(void *)s->gather_flags;
    if (rank == 0)
        allreduce_wait_launch(&c, &all, stream);
    for (int32_t r = rank; r < (rank == 0 ? s->num_ranks : rank + 1); r++) {
        size_t width = (size_t)(g->first[r + 1] - g->first[r]) * sizeof(float);
        const float *mine = g->logits + row0 * g->ld;
        char *place = s->logits + (size_t)r * s->gather_bytes;
        float *to = rank == 0 ? g->out + (int64_t)row0 * g->vocab_size + g->first[r] : NULL;
        if (width == 0 || (r == 0 && mine == to))
            continue;
        if (rank != 0)
            CUDA_CHECK(cudaMemcpy2DAsync(place, width, mine, (size_t)g->ld * sizeof(float), width,
                                         rows, cudaMemcpyDeviceToHost, stream));
        else if (r == 0)
            CUDA_CHECK(cudaMemcpy2DAsync(to, pitch, mine, (size_t)g->ld * sizeof(float), width,
                                         rows, cudaMemcpyDeviceToDevice, stream));
        else
            CUDA_CHECK(cudaMemcpy2DAsync(to, pitch, place, width, width, rows,
                                         cudaMemcpyHostToDevice, stream));
    }
    if (rank == 0) {
        allreduce_signal_launch(&c, &done, stream);
    } else {
        allreduce_signal_launch(&c, &own, stream);
        allreduce_wait_launch(&c, &done, stream);
    }
}

void staged_gather(struct staged *s, int32_t rank, const struct staged_gather *g,
                   cudaStream_t stream) {
    int32_t widest = 1;
    for (int32_t r = 0; r < s->num_ranks; r++)
        if (g->first[r + 1] - g->first[r] > widest)
            widest = g->first[r + 1] - g->first[r];
    int32_t most = (int32_t)(s->gather_bytes / ((size_t)widest * sizeof(float)));
    CHECK(most > 0, "%d columns of logits, more than were announced", widest);
    for (int32_t row0 = 0; row0 < g->num_rows; row0 += most) {
        int32_t left = g->num_rows - row0;
        gather_rows(s, rank, g, row0, left < most ? left : most, stream);
    }
}

/* ---- self test ------------------------------------------------------------------------------- */

int staged_self_test(struct staged *s, int32_t rank, int64_t timeout_ns, cudaStream_t stream,
                     struct error *error) {
    const struct staged_rank *r = &s->ranks[rank];
    struct allreduce_channel c = {
        .rank = rank, .num_ranks = s->num_ranks, .timeout_ns = timeout_ns};
    uint32_t *verdicts = (uint32_t *)(void *)(s->verdicts + rank * WORD_STRIDE);
    const char *through = s->peers ? "its memory" : "pinned host memory";
    int rc = 0;
    for (int32_t p = 0; p < s->num_ranks; p++) {
        c.to[p] = slot_at(s, p, rank) + s->slot.flags_at;
        c.from[p] = slot_at(s, rank, p) + s->slot.flags_at;
        verdicts[p] = 0;
    }
    allreduce_probe_launch(&c, verdicts, stream);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    for (int32_t p = 0; p < s->num_ranks; p++) {
        uint32_t verdict = __atomic_load_n(&verdicts[p], __ATOMIC_ACQUIRE);
        if (verdict != PROBE_GOOD)
            rc = error_add(error, ERR_INTERNAL,
                           "rank %d (GPU %d) %s what rank %d (GPU %d) wrote to %s", rank, r->device,
                           verdict == PROBE_WRONG ? "read other bytes than" : "did not see in time",
                           p, s->ranks[p].device, through);
    }
    return rc;
}
