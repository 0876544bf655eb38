/* cuda_step: what happens around the ops of a step: its arrays go to the device in one copy, and a
 * step of decodes is recorded as a CUDA graph when it comes for the second time.
 *
 * A graph fixes all launch sizes, so decode steps are padded: the number of sequences to the next
 * of some sizes, and the longest context to a power of two, which is the row stride of the block
 * tables. Each pair of these is recorded once, after a first run without recording (which loads
 * kernels). Graphs take memory of the device beside the pools, which --gpu-memory-utilization
 * leaves; where it is short, steps run as they are, which is said once.
 */
#include <string.h>

#include "cuda/cuda_backend.h"
#include "host/guard.h"
#include "host/log.h"

enum { ARRAY_ALIGN = 256 };

/* ---- arrays ---------------------------------------------------------------------------------- */

static void *carve_array(char *memory, size_t *used, size_t bytes) {
    void *p = memory ? memory + *used : NULL;
    *used += (bytes + ARRAY_ALIGN - 1) / ARRAY_ALIGN * ARRAY_ALIGN;
    return p;
}

static int32_t max_table_stride(const struct backend_config *c) {
    int32_t blocks = (c->max_model_len + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE, stride = 1;
    while (stride < blocks)
        stride *= 2;
    return stride;
}

size_t cuda_step_arrays(const struct backend_config *c, int32_t max_group, char *memory,
                        struct step_arrays *out) {
    size_t used = 0, T = (size_t)c->max_tokens, S = (size_t)c->max_seqs, i4 = sizeof(int32_t);
    out->host = memory;
    out->tokens = carve_array(memory, &used, T * i4);
    out->positions = carve_array(memory, &used, T * i4);
    out->slot_mapping = carve_array(memory, &used, T * i4);
    out->cu_seqlens = carve_array(memory, &used, (S + 1) * i4);
    out->seq_lens = carve_array(memory, &used, S * i4);
    out->logits_rows = carve_array(memory, &used, (size_t)c->max_logits * i4);
    out->step = carve_array(memory, &used, sizeof *out->step);
    out->tiles = carve_array(memory, &used,
                             (size_t)attention_max_tiles(c->max_tokens, c->max_seqs, max_group) *
                                 sizeof *out->tiles);
    out->block_tables = carve_array(memory, &used, S * (size_t)max_table_stride(c) * i4);
    out->bytes = used;
    return used;
}

/* The device's copy of an array. */
static const void *on_device(const struct step_arrays *a, const void *host) {
    return a->device + ((const char *)host - a->host);
}

/* ---- sizes of recorded steps ----------------------------------------------------------------- */

/* 1, 2, 4, then multiples of 8, from 64 on of 16: at most a third of a step is padding. */
static int32_t padded_seqs(int32_t n, int32_t max) {
    int32_t padded = n <= 2 ? n : n <= 4 ? 4 : n <= 64 ? (n + 7) / 8 * 8 : (n + 15) / 16 * 16;
    return padded < max ? padded : max;
}

/* Row stride of the block tables: a power of two that holds the longest context, at least 512
 * tokens. */
static int32_t padded_blocks(const struct batch *batch, int32_t most) {
    int32_t stride = 512 / KV_BLOCK_SIZE;
    for (int32_t s = 0; s < batch->num_seqs; s++)
        while ((int64_t)stride * KV_BLOCK_SIZE < batch->seq_lens[s])
            stride *= 2;
    return stride < most ? stride : most;
}

/* Every sequence gets one token and wants its logits. */
static bool is_decode(const struct batch *batch) {
    return batch->num_tokens == batch->num_seqs && batch->num_logits == batch->num_seqs;
}

static void say_unrecorded(struct backend *b, const char *why) {
    if (!b->said_unrecorded)
        log_warn("GPU %d: %s: decode steps of new sizes run without, a little slower", b->device,
                 why);
    b->said_unrecorded = true;
}

/* The entry for these sizes; NULL when the table is full. */
static struct recorded *find_recorded(struct backend *b, int32_t num_seqs, int32_t max_blocks) {
    for (int32_t i = 0; i < b->num_recorded; i++)
        if (b->recorded[i].num_seqs == num_seqs && b->recorded[i].max_blocks == max_blocks)
            return &b->recorded[i];
    if (b->num_recorded == MAX_GRAPHS) {
        say_unrecorded(b, "there are as many CUDA graphs as are kept");
        return NULL;
    }
    b->recorded[b->num_recorded] =
        (struct recorded){.num_seqs = num_seqs, .max_blocks = max_blocks};
    return &b->recorded[b->num_recorded++];
}

/* Is this step to be recorded: has it run once, and is there memory for a graph? */
static bool should_record(struct backend *b, struct recorded *r) {
    size_t free_bytes, total;
    if (!r->warm || r->refused)
        return false;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    if (free_bytes >= GRAPH_RESERVE_BYTES)
        return true;
    r->refused = true;
    say_unrecorded(b, "memory is too short for more CUDA graphs (--gpu-memory-utilization says "
                      "what is left for them)");
    return false;
}

/* ---- a step ---------------------------------------------------------------------------------- */

static void copy_ints(int32_t *to, const int32_t *from, int32_t n) {
    memcpy(to, from, (size_t)n * sizeof *to);
}

/* Fills the pinned arrays, with rows that come to nothing from the batch's own up to `padded`
 * sequences of one token. */
static void fill_arrays(struct backend *b, const struct batch *batch, int32_t padded,
                        int32_t stride) {
    struct step_arrays *a = &b->arrays;
    int32_t T = batch->num_tokens, S = batch->num_seqs;
    copy_ints(a->tokens, batch->tokens, T);
    copy_ints(a->positions, batch->positions, T);
    copy_ints(a->slot_mapping, batch->slot_mapping, T);
    copy_ints(a->cu_seqlens, batch->cu_seqlens, S + 1);
    copy_ints(a->seq_lens, batch->seq_lens, S);
    copy_ints(a->logits_rows, batch->logits_rows, batch->num_logits);
    for (int32_t s = 0; s < S; s++)
        copy_ints(a->block_tables + (int64_t)s * stride,
                  batch->block_tables + (int64_t)s * batch->max_blocks,
                  (batch->seq_lens[s] + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE);
    for (int32_t s = S; s < padded; s++) {
        a->tokens[s] = a->positions[s] = a->seq_lens[s] = 0;
        a->slot_mapping[s] = -1;
        a->cu_seqlens[s + 1] = s + 1;
        a->logits_rows[s] = s;
    }
}

static void upload_arrays(struct backend *b, int32_t num_seqs, int32_t stride) {
    struct step_arrays *a = &b->arrays;
    size_t bytes = (size_t)((char *)a->block_tables - a->host) +
                   (size_t)num_seqs * (size_t)stride * sizeof *a->block_tables;
    CUDA_CHECK(cudaMemcpyAsync(a->device, a->host, bytes, cudaMemcpyHostToDevice, b->stream));
    CUDA_CHECK(cudaEventRecord(b->arrays_read, b->stream));
}

static void describe_batch(struct backend *b, int32_t num_tokens, int32_t num_seqs,
                           int32_t num_logits, int32_t stride) {
    const struct step_arrays *a = &b->arrays;
    b->batch = (struct batch){
        .num_tokens = num_tokens,
        .num_seqs = num_seqs,
        .tokens = on_device(a, a->tokens),
        .positions = on_device(a, a->positions),
        .cu_seqlens = on_device(a, a->cu_seqlens),
        .seq_lens = on_device(a, a->seq_lens),
        .block_tables = on_device(a, a->block_tables),
        .max_blocks = stride,
        .slot_mapping = on_device(a, a->slot_mapping),
        .num_logits = num_logits,
        .logits_rows = on_device(a, a->logits_rows),
    };
}

/* Ranks number their steps alike. When the numbers are used up all of them begin anew: no rank is
 * in a step then, as each waits for the end of its own. */
static void number_step(struct backend *b) {
    struct error error = {0};
    if (!b->comm)
        return;
    if (b->num_steps + 1 == COMM_STEPS) {
        if (comm_reset(b->comm, &error) != 0)
            guard_fail("%s", error.text);
        b->num_steps = 0;
    }
    *b->arrays.step = ++b->num_steps; /* 0 is what comm_create calls its own */
}

const struct batch *cuda_begin_step(struct backend *b, const struct batch *batch, bool eager) {
    int32_t most = max_table_stride(&b->config), stride = padded_blocks(batch, most);
    bool decode = is_decode(batch) && !b->config.enforce_eager;
    int32_t seqs = decode ? padded_seqs(batch->num_seqs, b->config.max_seqs) : batch->num_seqs;
    struct recorded *r = decode ? find_recorded(b, seqs, stride) : NULL;
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaEventSynchronize(b->arrays_read));
    if (!r)
        seqs = batch->num_seqs;
    number_step(b);
    fill_arrays(b, batch, seqs, stride);
    attention_make_plan(&b->plan, b->arrays.tiles, b->arrays.cu_seqlens, b->arrays.seq_lens, seqs,
                        b->max_group, b->max_splits, b->config.batch_invariant);
    if (r) /* launches are sized for any context that the tables hold */
        b->plan.max_splits =
            b->config.batch_invariant
                ? 1
                : (stride * KV_BLOCK_SIZE + PARTITION_TOKENS - 1) / PARTITION_TOKENS;
    upload_arrays(b, seqs, stride);
    describe_batch(b, r ? seqs : batch->num_tokens, seqs, r ? seqs : batch->num_logits, stride);
    b->recording = NULL;
    if (r && r->graph && !eager) {
        CUDA_CHECK(cudaGraphLaunch(r->graph, b->stream));
        return NULL;
    }
    if (r && !eager && should_record(b, r)) {
        b->recording = r;
        CUDA_CHECK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    }
    if (r)
        r->warm = true;
    if (b->comm)
        comm_begin_step(b->comm);
    return &b->batch;
}

/* Ends a recording and runs it. */
static void launch_recorded(struct backend *b) {
    struct recorded *r = b->recording;
    cudaGraph_t graph;
    b->recording = NULL;
    CUDA_CHECK(cudaStreamEndCapture(b->stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&r->graph, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CUDA_CHECK(cudaGraphLaunch(r->graph, b->stream));
}

int cuda_end_step(struct backend *b, struct error *error) {
    if (b->recording)
        launch_recorded(b);
    return b->comm ? cuda_wait_for_step(b, error) : 0;
}

void cuda_drop_recorded(struct backend *b) {
    for (int32_t i = 0; i < b->num_recorded; i++)
        if (b->recorded[i].graph)
            CUDA_CHECK(cudaGraphExecDestroy(b->recorded[i].graph));
    b->num_recorded = 0;
}
