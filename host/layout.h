/* layout: which rank holds what. Pure arithmetic: (model, ranks) -> table, no device, no weights.
 *
 * Any number of ranks; nothing has to divide anything.
 *   attention   whole KV groups per rank, as evenly as they go (36 heads on 8: 5,5,5,5,4,4,4,4).
 * With fewer KV heads than ranks, KV heads are replicated and the query heads are split. experts
 * ep: whole experts, as evenly as they go; tp: every expert cut by columns in multiples of the
 * reduction unit; grids: ep_size x tp_size == world_size. dense FFN   columns, in multiples of the
 * reduction unit. Vocabulary: row ranges. Every range is [first, first + count); a rank may hold
 * nothing of a kind.
 */
#pragma once

#include <stdint.h>

#include "host/buffer.h"
#include "host/error.h"
#include "host/model_config.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAX_RANKS = 16 };

struct range {
    int32_t first, count;
};

struct rank_layout {
    struct range q_heads;    /* query heads */
    struct range kv_heads;   /* KV heads that these read; may overlap with other ranks' */
    struct range kv_counted; /* those of them that no lower rank holds: each head is counted once */
    struct range experts;    /* experts held, whole or in part */
    struct range expert_columns; /* the columns of I that are held of each of them */
    struct range ffn_columns;    /* of dense layers */
    struct range vocab;          /* rows of lm_head */
};

struct layout {
    int32_t world_size, ep_size, tp_size;
    int32_t expert_unit, ffn_unit; /* reduction units in columns: ops.h, moe_args.unit */
    struct rank_layout rank[MAX_RANKS];
};

struct layout_options {
    int32_t expert_parallel_size; /* 0 or 1: tp; world_size: ep; a divisor between: a grid */
};

/* Part `index` of `count` things cut into `parts` as evenly as they go: the first count % parts get
 * one more. */
struct range layout_split(int32_t count, int32_t parts, int32_t index);

/* The reduction unit of a down projection with `columns` columns: a power of two from 8 to 128,
 * small enough for 16 ranks (layout_make raises it to MIN_BLOCK_SCALED_UNIT for block scales). A
 * function of the model alone, so that the sums do not depend on the number of ranks. */
int32_t layout_unit(int32_t columns);

/* Where the columns of FFNs with block scales are cut at the finest: at a quarter of a block, which
 * balances ranks better than whole blocks (768 columns on 8 ranks) and is still a tile of the GPU's
 * matrix layout. */
enum { MIN_BLOCK_SCALED_UNIT = 32 };

/* ERR_CONFIG when world_size is out of 1..MAX_RANKS or expert_parallel_size does not divide it. */
int layout_make(const struct model_config *config, int32_t world_size,
                const struct layout_options *options, struct layout *out, struct error *error);

/* One line a rank. */
void layout_describe(const struct layout *l, const struct model_config *config, struct buffer *out);

#ifdef __cplusplus
}
#endif
