/* staged: memory, lifecycle and trouble (staged.h).
 *
 * A rank has a box of slots. In pinned memory it has n + 1: slot r takes what rank r sends, and
 * slot n holds the rank's own result, which the others come to read. With peer access the box lies
 * in the rank's GPU and has 2 n slots: slot r, and slot n + r for the result of rank r, which r
 * brings: writing to another GPU is fast, reading from it is not.
 */
#include "cuda/staged.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/staged_internal.h"

enum { ALIGN = 256, PLAIN_ROW_BYTES = 4096 * 8 };

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static int64_t or_default(int64_t bytes, int64_t def) {
    return bytes > 0 ? bytes : def;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Room for a share of the payload, and for slices that are rounded up. */
static struct slot_layout slot_of(const struct staged_config *c) {
    size_t n = (size_t)c->num_ranks;
    size_t lines = (size_t)or_default(c->lines_bytes, 32 << 10) / n * 2 + (16 << 10);
    size_t flags = (size_t)or_default(c->flags_bytes, 1 << 20) / n + (64 << 10) + PROBE_BYTES;
    size_t row = larger((size_t)allreduce_row_bytes(c->payload, c->hidden_size), PLAIN_ROW_BYTES);
    size_t copies = larger((size_t)or_default(c->piece_bytes, 4 << 20) / n, row);
    struct slot_layout s = {aligned(lines), aligned(flags), aligned(copies), 0, 0, 0};
    s.flags_at = s.lines;
    s.copies_at = s.flags_at + s.flags;
    s.bytes = s.copies_at + COPIES_HEADER + s.copies;
    return s;
}

static size_t box_bytes(const struct staged_config *c, bool peers) {
    size_t n = (size_t)c->num_ranks;
    return (peers ? 2 * n : n + 1) * slot_of(c).bytes;
}

/* A rank's place for logits: all, or as many rows as fit in 2 MB, at least one. */
static size_t gather_bytes(const struct staged_config *c) {
    size_t row = (size_t)c->max_vocab_rows * sizeof(float), most = 2 << 20;
    size_t all = row * (size_t)c->max_logits_rows;
    return aligned(all <= most ? all : larger(row, most / larger(row, 1) * row));
}

/* Packed, received and gathered rows, and the rank's own sums. */
static size_t staging_bytes(const struct staged_config *c) {
    return (3 * (size_t)c->num_ranks + 1) * slot_of(c).copies;
}

/* The pinned words and logits, before the boxes. */
static size_t words_bytes(const struct staged_config *c) {
    size_t n = (size_t)c->num_ranks;
    return aligned((1 + n + n + n) * WORD_STRIDE) + n * gather_bytes(c);
}

size_t staged_host_bytes(const struct staged_config *c) {
    return words_bytes(c) + (c->peers ? 0 : (size_t)c->num_ranks * box_bytes(c, false));
}

size_t staged_device_bytes(const struct staged_config *c) {
    return staging_bytes(c) + (c->peers ? box_bytes(c, true) : 0);
}

/* ---- create ---------------------------------------------------------------------------------- */

/* Gives every GPU access to every other; false where a pair has none. */
static bool enable_peers(const struct staged_config *c) {
    for (int32_t pass = 0; pass < 2; pass++)
        for (int32_t r = 0; r < c->num_ranks; r++)
            for (int32_t p = 0; p < c->num_ranks; p++) {
                int can = 0, from = c->devices[r], to = c->devices[p];
                if (from == to)
                    continue;
                if (pass == 0) {
                    CUDA_CHECK(cudaDeviceCanAccessPeer(&can, from, to));
                    if (!can)
                        return false;
                    continue;
                }
                CUDA_CHECK(cudaSetDevice(from));
                cudaError_t e = cudaDeviceEnablePeerAccess(to, 0);
                if (e == cudaErrorPeerAccessAlreadyEnabled)
                    e = cudaSuccess;
                CUDA_CHECK(e);
                cudaGetLastError();
            }
    return true;
}

/* Blocks that fit on the GPUs at once, whoever shares one. */
static int32_t resident_blocks(const struct staged_config *c) {
    int32_t blocks = ALLREDUCE_MAX_BLOCKS;
    for (int32_t r = 0; r < c->num_ranks; r++) {
        int sms = 0, sharing = 0;
        CUDA_CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, c->devices[r]));
        for (int32_t p = 0; p < c->num_ranks; p++)
            sharing += c->devices[p] == c->devices[r];
        if (sms / sharing < blocks)
            blocks = sms / sharing;
    }
    return blocks;
}

static int check_config(const struct staged_config *c, struct error *error) {
    if (c->num_ranks < 1 || c->num_ranks > ALLREDUCE_MAX_RANKS)
        return error_set(error, ERR_UNSUPPORTED, "%d ranks: the built-in all-reduce takes 1 to %d",
                         c->num_ranks, ALLREDUCE_MAX_RANKS);
    if (!allreduce_has_norm(c->hidden_size))
        return error_set(error, ERR_UNSUPPORTED,
                         "a hidden size of %d: the built-in all-reduce takes up to %d (%d where it "
                         "is no multiple of 4)",
                         c->hidden_size, ALLREDUCE_MAX_NORM, ALLREDUCE_MAX_ODD_NORM);
    if (resident_blocks(c) == 0)
        return error_set(error, ERR_UNSUPPORTED,
                         "more ranks share a GPU than it has multiprocessors");
    return 0;
}

static int take_segment(struct staged *s, const struct staged_config *c, struct error *error) {
    struct staged_config as = *c;
    as.peers = s->peers;
    s->segment_bytes = staged_host_bytes(&as);
    void *p = NULL;
    CUDA_CHECK(cudaSetDevice(c->devices[0]));
    if (cudaHostAlloc(&p, s->segment_bytes, cudaHostAllocPortable | cudaHostAllocMapped) !=
        cudaSuccess) {
        cudaGetLastError();
        return error_set(error, ERR_NO_MEMORY,
                         "%.1f MB of pinned host memory for exchanges between the GPUs are not to "
                         "be had (ulimit -l, or fewer GPUs)",
                         (double)s->segment_bytes * 1e-6);
    }
    size_t n = (size_t)s->num_ranks;
    s->segment = p;
    s->abort = p;
    s->statuses = s->segment + WORD_STRIDE;
    s->verdicts = s->statuses + n * WORD_STRIDE;
    s->gather_flags = s->verdicts + n * WORD_STRIDE;
    s->logits = s->segment + aligned((1 + 3 * n) * WORD_STRIDE);
    char *box = s->segment + words_bytes(c);
    for (size_t r = 0; !s->peers && r < n; r++)
        s->ranks[r].box = box + r * box_bytes(c, false);
    return 0;
}

static int take_device_memory(struct staged *s, const struct staged_config *c,
                              struct error *error) {
    size_t n = (size_t)s->num_ranks, box = s->peers ? box_bytes(c, true) : 0;
    for (size_t i = 0; i < n; i++) {
        struct staged_rank *r = &s->ranks[i];
        void *p = NULL;
        r->device = c->devices[i];
        CUDA_CHECK(cudaSetDevice(r->device));
        if (cudaMalloc(&p, box + staging_bytes(c)) != cudaSuccess) {
            cudaGetLastError();
            return error_set(error, ERR_NO_MEMORY,
                             "GPU %d has no %.1f MB left for exchanges between the GPUs (lower "
                             "--gpu-memory-utilization)",
                             r->device, (double)(box + staging_bytes(c)) * 1e-6);
        }
        r->memory = p;
        if (s->peers)
            r->box = r->memory;
        r->packed = r->memory + box;
        r->received = r->packed + n * s->slot.copies;
        r->gathered = r->received + n * s->slot.copies;
        r->summed = r->gathered + n * s->slot.copies;
    }
    return 0;
}

int staged_create(struct staged **out, const struct staged_config *c, struct error *error) {
    *out = NULL;
    int rc = check_config(c, error), before = 0;
    if (rc != 0)
        return rc;
    CUDA_CHECK(cudaGetDevice(&before));
    struct staged *s = xcalloc(1, sizeof *s);
    *s = (struct staged){
        .num_ranks = c->num_ranks,
        .num_blocks = resident_blocks(c),
        .peers = c->peers && enable_peers(c),
        .payload = c->payload,
        .timeout_ns = c->timeout_ns,
        .lines_bytes = or_default(c->lines_bytes, 32 << 10),
        .flags_bytes = or_default(c->flags_bytes, 1 << 20),
        .slot = slot_of(c),
        .gather_bytes = gather_bytes(c),
    };
    rc = take_device_memory(s, c, error);
    if (rc == 0)
        rc = take_segment(s, c, error);
    if (rc == 0)
        staged_reset(s);
    CUDA_CHECK(cudaSetDevice(before));
    if (rc != 0)
        staged_destroy(s);
    else
        *out = s;
    return rc;
}

void staged_destroy(struct staged *s) {
    if (!s)
        return;
    int before = 0;
    CUDA_CHECK(cudaGetDevice(&before));
    for (int32_t r = 0; r < s->num_ranks; r++) {
        CUDA_CHECK(cudaSetDevice(s->ranks[r].device));
        CUDA_CHECK(cudaFree(s->ranks[r].memory));
    }
    CUDA_CHECK(cudaFreeHost(s->segment));
    CUDA_CHECK(cudaSetDevice(before));
    free(s);
}

bool staged_uses_peers(const struct staged *s) {
    return s->peers;
}

int32_t staged_num_blocks(const struct staged *s) {
    return s->num_blocks;
}

/* ---- trouble --------------------------------------------------------------------------------- */

void staged_abort(struct staged *s) {
    __atomic_store_n(s->abort, 1, __ATOMIC_RELEASE);
}

int staged_status(struct staged *s, int32_t rank, struct error *error) {
    uint64_t status = __atomic_load_n(status_word(s, rank), __ATOMIC_ACQUIRE);
    int32_t who = (int32_t)(status >> 32 & 0xffffff), call = (int32_t)(status & 0xffffffff);
    if (status == 0)
        return 0;
    if (status >> 56 == ALLREDUCE_TIMED_OUT)
        return error_set(
            error, ERR_INTERNAL, "GPU %d waited %.3g s for rank %d (GPU %d) in collective %d",
            s->ranks[rank].device, (double)s->timeout_ns * 1e-9, who, s->ranks[who].device, call);
    return error_set(error, ERR_INTERNAL,
                     "GPU %d was told to stop when it waited for rank %d (GPU %d) in collective %d",
                     s->ranks[rank].device, who, s->ranks[who].device, call);
}

/* What holds numbers: lines, flags, and the header of copies. */
static void clear_slots(const struct staged *s, struct staged_rank *r) {
    int32_t slots = s->peers ? 2 * s->num_ranks : s->num_ranks + 1;
    CUDA_CHECK(cudaSetDevice(r->device));
    for (int32_t i = 0; i < slots; i++) {
        char *slot = r->box + (size_t)i * s->slot.bytes;
        if (s->peers)
            CUDA_CHECK(cudaMemset(slot, 0, s->slot.copies_at + COPIES_HEADER));
        else
            memset(slot, 0, s->slot.copies_at + COPIES_HEADER);
    }
    CUDA_CHECK(cudaDeviceSynchronize());
}

void staged_reset(struct staged *s) {
    int before = 0;
    CUDA_CHECK(cudaGetDevice(&before));
    memset(s->segment, 0, (size_t)(s->logits - s->segment));
    for (int32_t r = 0; r < s->num_ranks; r++) {
        staged_begin_step(s, r);
        clear_slots(s, &s->ranks[r]);
    }
    CUDA_CHECK(cudaSetDevice(before));
}
