/* batch: the tokens of one step, flat, as every rank sees them.
 *
 * A step mixes decodes (one new token) and chunks of prefills (several). Sequence s contributes the
 * rows cu_seqlens[s] .. cu_seqlens[s+1]-1 of the T token rows. All arrays are borrowed, filled by
 * the scheduler before the step and unchanged during it.
 *
 *   tokens        7 9 4 | 5 | 8 1          T = 6, S = 3
 *   positions     0 1 2 | 9 | 16 17
 *   cu_seqlens    0       3   4      6
 *   seq_lens      3 | 10 | 18              keys that the last row of each sequence attends to
 */
#pragma once

#include <stdint.h>

enum { KV_BLOCK_SIZE = 16 }; /* tokens in a KV block */

struct batch {
    int32_t num_tokens;          /* T */
    int32_t num_seqs;            /* S */
    const int32_t *tokens;       /* [T] */
    const int32_t *positions;    /* [T] */
    const int32_t *cu_seqlens;   /* [S + 1] */
    const int32_t *seq_lens;     /* [S] context length once this step's tokens are written */
    const int32_t *block_tables; /* [S, max_blocks] ids of the sequence's KV blocks, in order */
    int32_t max_blocks;          /* row stride of block_tables */
    const int32_t *slot_mapping; /* [T] block * KV_BLOCK_SIZE + offset where the row's K, V go */
    int32_t num_logits;          /* R */
    const int32_t *logits_rows;  /* [R] rows of T whose logits are wanted, ascending */
};
