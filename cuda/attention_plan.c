/* attention_plan: which rows of a step go to which attention kernel, and how contexts are split.
 *
 * Host arithmetic on the arrays of the step; the contracts are in kernels.h.
 */
#include "cuda/kernels.h"

#include "host/mem.h"

static int32_t divide_up(int64_t a, int64_t b) {
    return (int32_t)((a + b - 1) / b);
}

int32_t attention_max_tiles(int32_t max_tokens, int32_t max_seqs, int32_t max_group) {
    return max_seqs + divide_up((int64_t)max_tokens * max_group, PREFILL_TILE);
}

int64_t attention_max_splits(int32_t max_seqs, int64_t kv_tokens) {
    return max_seqs + kv_tokens / PARTITION_TOKENS;
}

/* For each row of a split its maximum and sum, then D partial outputs. */
size_t attention_workspace_bytes(int64_t max_splits, int32_t num_kv_heads, int32_t head_dim) {
    return (size_t)max_splits * (size_t)num_kv_heads * DECODE_TILE * ((size_t)head_dim + 2) *
           sizeof(float);
}

/* The splits of a sequence: 1 unless there is room for more. */
static int32_t num_splits(int32_t seq_len, int64_t room) {
    int32_t n = divide_up(seq_len, PARTITION_TOKENS);
    return n < 1 || n > room ? 1 : n;
}

void attention_make_plan(struct attention_plan *plan, struct attention_tile *tiles,
                         const int32_t *cu_seqlens, const int32_t *seq_lens, int32_t num_seqs,
                         int32_t max_group, int64_t max_splits, bool whole) {
    struct attention_tile *tile = tiles;
    *plan = (struct attention_plan){.max_splits = 1};
    for (int32_t s = 0; s < num_seqs; s++) {
        int64_t rows = (int64_t)(cu_seqlens[s + 1] - cu_seqlens[s]) * max_group;
        CHECK(seq_lens[s] == 0 || seq_lens[s] >= cu_seqlens[s + 1] - cu_seqlens[s],
              "sequence %d has %d new tokens in a context of %d", s,
              cu_seqlens[s + 1] - cu_seqlens[s], seq_lens[s]);
        if (rows == 0 || rows > DECODE_TILE)
            continue;
        int32_t n = num_splits(seq_lens[s], whole ? 0 : max_splits - plan->total_splits);
        *tile++ = (struct attention_tile){s, 0, plan->total_splits, n};
        plan->total_splits += n > 1 ? n : 0;
        plan->max_splits = n > plan->max_splits ? n : plan->max_splits;
    }
    plan->num_decode_tiles = (int32_t)(tile - tiles);
    for (int32_t s = 0; s < num_seqs; s++) {
        int64_t rows = (int64_t)(cu_seqlens[s + 1] - cu_seqlens[s]) * max_group;
        for (int64_t row = 0; rows > DECODE_TILE && row < rows; row += PREFILL_TILE)
            *tile++ = (struct attention_tile){s, (int32_t)row, 0, 1};
    }
    plan->num_prefill_tiles = (int32_t)(tile - tiles) - plan->num_decode_tiles;
}
