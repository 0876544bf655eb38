/* staged_internal: the parts of struct staged, for staged.c and staged_calls.c. */
#pragma once

#include "cuda/cuda_check.h"
#include "cuda/staged.h"

/* What a message needs in each way. A slot has room for one message of each, one after the other;
 * of copies, the flag comes first. */
struct slot_layout {
    size_t lines, flags, copies; /* bytes of each message */
    size_t flags_at, copies_at;  /* where they begin; lines at 0 */
    size_t bytes;                /* of the slot */
};
enum { COPIES_HEADER = 256 };

/* Words in pinned memory that are polled, each in a cache line of its own. */
enum { WORD_STRIDE = 128 };

struct staged_rank {
    int32_t device;
    int32_t calls;               /* of the step */
    const uint32_t *step_number; /* device memory; borrowed */
    char *box;                   /* slots: owned device memory, or part of the pinned segment */
    char *memory;                /* owned device memory: box (peers), packed, received, summed */
    char *packed, *received, *gathered,
        *summed; /* [n * copies], .., .., [copies] bytes, of copies */
};

struct staged {
    int32_t num_ranks, num_blocks;
    bool peers;
    enum allreduce_payload payload;
    int64_t timeout_ns, lines_bytes, flags_bytes;
    struct slot_layout slot;
    size_t gather_bytes; /* of a rank's place in `logits` */
    char *segment;       /* owned pinned memory */
    uint32_t *abort;     /* all in the segment */
    char *statuses, *verdicts, *gather_flags, *logits;
    size_t segment_bytes;
    struct staged_rank ranks[ALLREDUCE_MAX_RANKS];
};

static inline uint64_t *status_word(const struct staged *s, int32_t rank) {
    return (uint64_t *)(void *)(s->statuses + rank * WORD_STRIDE);
}
