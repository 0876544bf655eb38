/* layout: which rank holds what. Pure arithmetic: (model, ranks, memory) -> table, no device, no
 * weights.
 *
 * Any number of ranks, any memory size of a rank; nothing has to divide anything.
 *   attention   whole KV groups per rank; with fewer KV heads than ranks, KV heads are replicated
 *               and the query heads are split.
 *   experts     ep: whole experts; tp: every expert cut by columns in multiples of the reduction
 *               unit; grids: ep_size x tp_size == world_size.
 *   dense FFN   columns, in multiples of the reduction unit; shared experts likewise.
 *   vocabulary  rows of lm_head.
 * Every range is [first, first + count), in rank order; a rank may hold nothing of a kind.
 *
 * Heads are as even as memory allows (equal memory: 36 on 8 = 5,5,5,5,4,4,4,4), as the slowest rank
 * decides the time of attention and the fullest the room of the KV cache. All else is given out
 * from the coarsest unit to the finest such that the largest share that a rank uses of its memory
 * is least; so a rank with a head more gets fewer columns or vocabulary rows. What is not known
 * (no memory sizes, no bytes) counts as equal, and everything is split as evenly as it goes.
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

/* One expert, or a slice of one, on one rank. An expert that several ranks hold for a part of its
 * tokens each (replicas of a busy one) has parts > 1; the ranks' home shares are part 0. */
struct expert_share {
    int32_t expert;
    struct range columns;
    int32_t part, parts; /* 0 <= part < parts: token i of the expert belongs to part i % parts */
};

enum { MAX_EXPERT_COPIES = 16 }; /* of a rank */

struct rank_layout {
    struct range q_heads;        /* query heads */
    struct range kv_heads;       /* KV heads that these read; may overlap with other ranks' */
    struct range kv_counted;     /* those of them that no lower rank holds: each is counted once */
    struct range experts;        /* experts held, whole or in part: home shares */
    struct range expert_columns; /* the columns of I that are held of each of them */
    struct range shared_columns; /* of the shared experts' FFN */
    struct range ffn_columns;    /* of dense layers */
    struct range vocab;          /* rows of lm_head */
    struct expert_share replicas[MAX_EXPERT_COPIES]; /* held besides the home shares, part >= 1 */
    int32_t num_replicas;
    int64_t memory; /* bytes that the rank may use; 0: not known */
    int64_t fixed;  /* of these, spent whatever it holds */
};

/* Bytes of an element of each kind of weights, scales included; all 0: not known. */
struct layout_elements {
    double attention, experts, ffn, lm_head; /* (shared experts as ffn) */
    double kv;                               /* of a key or value */
};

/* Bytes over all layers. */
struct layout_sizes {
    int64_t q_head;        /* a query head: D rows of q and D columns of o */
    int64_t kv_head;       /* a KV head: D rows of k and of v */
    int64_t expert_column; /* a column of one expert: rows of gate and up, a column of down */
    int64_t shared_column, ffn_column;
    int64_t vocab_row;
    int64_t replicated;    /* router, norms, biases: on every rank */
    int64_t kv_head_token; /* key and value of one KV head and token */
};

struct layout {
    int32_t world_size, ep_size, tp_size;
    int32_t expert_unit, ffn_unit, shared_unit; /* reduction units: ops.h, moe_args.unit */
    int32_t shared_intermediate_size;
    int64_t kv_tokens;         /* tokens of KV cache for which the ranks were filled */
    struct layout_sizes sizes; /* zeros when nothing was known */
    struct rank_layout rank[MAX_RANKS];
};

/* Zeroed: equal ranks without limits. */
struct layout_options {
    int32_t expert_parallel_size; /* 0 or 1: tp; world_size: ep; a divisor between: a grid */
    int32_t shared_intermediate_size;
    int32_t min_unit; /* the least of a reduction unit: 32 for float64 partials on GPUs, else 0 */
    struct layout_elements elements;
    int64_t memory[MAX_RANKS]; /* bytes that a rank may use; 0 everywhere: no limit */
    int64_t fixed[MAX_RANKS];  /* spent whatever the rank holds: activations, embedding, ... */
    int64_t kv_tokens;         /* that the KV cache shall hold, all sequences together */
    int64_t kv_tokens_min;     /* > 0: if those do not fit, as many as do, but not fewer than this;
                                * both are rounded up to whole blocks */
};

/* What one rank holds, in bytes. */
struct layout_bytes {
    int64_t attention, experts, shared, ffn, vocabulary;
    int64_t replicated; /* weights that every rank has whole */
    int64_t fixed;
    int64_t kv_per_token, kv; /* kv: of layout.kv_tokens */
    int64_t weights, total;   /* weights: the first six; total: with fixed and kv */
};

/* Part `index` of `count` things cut into `parts` as evenly as they go: the first count % parts get
 * one more. */
struct range layout_split(int32_t count, int32_t parts, int32_t index);

/* The reduction unit of a down projection with `columns` columns: a power of two from 8 to 128,
 * small enough for 16 ranks (layout_make raises it to MIN_BLOCK_SCALED_UNIT for block scales, and
 * to min_unit). A function of the model alone, so that the sums do not depend on the number of
 * ranks. */
int32_t layout_unit(int32_t columns);

/* Where the columns of FFNs with block scales are cut at the finest: at a quarter of a block, which
 * balances ranks better than whole blocks (768 columns on 8 ranks) and is still a tile of the GPU's
 * matrix layout. */
enum { MIN_BLOCK_SCALED_UNIT = 32 };

/* Bytes of elements as the GPU backend keeps them: two for everything but FP8 weights, which have
 * one and their scales (a float for each row, or for each 16 x 128 elements of block scales). `kv`
 * is the KV cache's type; DTYPE_NONE: BF16. */
struct layout_elements layout_elements_of(const struct model_config *c, enum dtype kv);

struct layout_sizes layout_sizes_of(const struct model_config *c, const struct layout_elements *e);

/* ERR_CONFIG when world_size is out of 1..MAX_RANKS, expert_parallel_size does not divide it, or
 * the memory of some ranks only is known. ERR_NO_MEMORY when no layout keeps every rank within its
 * memory; the text says how much is missing where and what helps, and *out is then the layout with
 * even heads, for drawing. Ranks in several processes must all call it with the memory of all.
 * Exact but for this: columns are
 * counted in whole units, a rank may be left with less than a vocabulary row (or, in models with
 * dense layers beside experts, less than a unit of the finer kind), in grids a search over
 * heads weighs groups of ranks as if experts were spread evenly over them, and where KV heads are
 * replicated it prefers room for columns to fewer copies. */
int layout_make(const struct model_config *config, int32_t world_size,
                const struct layout_options *options, struct layout *out, struct error *error);

/* The shares of experts of a rank: its home shares, ascending, then its replicas. */
int32_t layout_num_expert_shares(const struct layout *l, int32_t rank);
struct expert_share layout_expert_share(const struct layout *l, int32_t rank, int32_t i);

/* Does the table hold each element of the model as often as it should: query heads, FFN columns and
 * vocabulary rows once, KV heads on every rank whose query heads read them and counted once, each
 * column of each part of an expert once, cuts at multiples of units? All that is wrong is in
 * `error`, one line each. ERR_INTERNAL. */
int layout_check(const struct layout *l, const struct model_config *config, struct error *error);

struct layout_bytes layout_bytes(const struct layout *l, int32_t rank);

/* Tokens of KV cache that fit beside the weights, whole blocks, the tightest rank deciding;
 * INT32_MAX at most, and when no memory is known. */
int32_t layout_kv_tokens(const struct layout *l);

/* One row a rank: what it holds and, where bytes are known, a bar of its memory; at most 100
 * columns wide. Lines begin with two blanks. (layout_draw.c) */
void layout_draw(const struct layout *l, const struct model_config *config, struct buffer *out);

#ifdef __cplusplus
}
#endif
