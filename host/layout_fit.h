/* layout_fit: how many units of everything each rank gets. The search behind layout_make, and not
 * for other modules: it knows units and their bytes, nothing of models.
 *
 * Heads are as even as memory allows: an even split first, and if that leaves some rank over its
 * memory, the least maximum with which all ranks fit, then the largest minimum, both found by
 * dynamic programming over the ranks.
 *
 * Everything else is given out by kinds, from coarse to fine, so that the finer even out the
 * coarser. Of one kind each unit goes to the rank that is least full afterwards, which makes the
 * fullest rank as little full as can be. For if our fullest rank had fewer units, some other rank
 * would have more than we gave it; but ours got its last one because that other rank would have
 * been at least as full with one more. The vocabulary comes last, and is spread evenly below the
 * share that it cannot lower.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

struct layout_fit {
    /* The problem. */
    int32_t world_size, ep_size, tp_size;
    int64_t memory[MAX_RANKS]; /* bytes; 0 everywhere: no limit, all alike */
    int64_t spent[MAX_RANKS];  /* bytes that a rank spends whatever it holds */
    int32_t num_q_heads, num_kv_heads;
    int32_t fewest_heads, most_heads; /* query heads that a rank may get; 0 and 0: any number */
    int32_t num_experts;
    int32_t expert_units; /* units of columns that an expert has; likewise: */
    int32_t shared_units, ffn_units, vocab_rows;
    int64_t q_head_bytes, kv_head_bytes; /* (the latter with the head's KV cache) */
    int64_t expert_unit_bytes, shared_unit_bytes, ffn_unit_bytes, vocab_row_bytes;

    /* The solution. */
    int32_t q_heads[MAX_RANKS];
    int32_t experts[MAX_RANKS]; /* of each group of tp_size ranks: [ep_size] */
    int32_t columns[MAX_RANKS]; /* units; likewise: */
    int32_t shared[MAX_RANKS], ffn[MAX_RANKS], vocab[MAX_RANKS];
    int64_t load[MAX_RANKS]; /* bytes in all */
};

/* KV heads that the query heads [first, first + count) read. */
struct range layout_fit_kv_heads(const struct layout_fit *f, int32_t first, int32_t count);

/* Allows no more uneven heads than those of the solution. */
void layout_fit_keep_heads(struct layout_fit *f);

/* False when no solution keeps every rank within its memory; then the solution is that with even
 * heads. */
bool layout_fit_solve(struct layout_fit *f);

#ifdef __cplusplus
}
#endif
