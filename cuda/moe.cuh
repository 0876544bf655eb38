/* moe: what the parts of the expert GEMMs share: the work lists, and the internal launchers.
 *
 * A kernel's work is a list of items, each a part of one expert's rows (and tokens). It is never
 * written down: a warp of each block derives item i from expert_counts with a few ballots, so that
 * neither the host nor another kernel has to know the counts first. A block takes items blockIdx.x,
 * blockIdx.x + gridDim.x, ... of the list: all items cost about the same, and blocks that run at the
 * same time work on neighbouring rows of one expert.
 *
 * Which kernel computes an expert is decided by its own count alone: up to stream_limit tokens it
 * belongs to the streaming kernels, above to the tile kernels.
 */
#pragma once

#include "cuda/mma_rows.cuh"

/* Arguments of the kernels: moe_launch_args with what its host pointer points to. */
struct moe_args_device {
    struct moe_launch_args a;
    struct gpu_routing r;
    int32_t stream_limit; /* most tokens of an expert of the streaming kernels */
};

struct moe_item {
    int32_t expert, slot; /* slot: index into experts; -1: there is no item */
    int32_t first, count; /* its tokens in the permutation */
    int32_t index;        /* of the item among its expert's */
};

/* The token of the pair at a place of the permutation. */
DEVICE int moe_token_of(const struct moe_args_device &p, int at) {
    return p.r.permutation[at] / p.a.num_experts_per_tok;
}

/* A block's place in the list, in shared memory: not in registers, which the sums need. */
struct moe_queue {
    struct moe_item item[2]; /* one is in use while the other is made */
    int32_t number;          /* of the next item, in the list */
    int32_t turn;            /* which of item[] is next */
    int32_t base, before;    /* experts before `base` have `before` items */
};

/* For all threads of a block. */
DEVICE void moe_queue_start(struct moe_queue *q) {
    if (threadIdx.x == 0) {
        q->number = blockIdx.x;
        q->turn = q->base = q->before = 0;
    }
    __syncthreads(); /* the queue is at its start */
}

/* Warp 0 of a block: makes the block's next item. An expert held here with low < count <= high has
 * `parts` items for each `tokens` tokens. */
DEVICE void moe_queue_find(struct moe_queue *q, const struct moe_args_device &p, int low, int high,
                           int parts, int tokens) {
    int lane = threadIdx.x, E = p.a.num_experts;
    int number = q->number, before = q->before, base = q->base;
    struct moe_item found = {-1, -1, 0, 0, 0};
    for (; base < E; base += WARP) {
        int e = base + lane;
        int slot = e < E ? p.a.expert_slot[e] : -1;
        int count = slot >= 0 ? p.r.expert_counts[e] : 0;
        int items = count > low && count <= high ? (count - 1) / tokens * parts + parts : 0;
        int end = items;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            int below = __shfl_up_sync(ALL_LANES, end, step);
            end += lane >= step ? below : 0;
        }
        unsigned past = __ballot_sync(ALL_LANES, before + end > number);
        if (past) {
            int from = __popc(~past & (past - 1)); /* the first of them */
            found.expert = base + from;
            found.slot = __shfl_sync(ALL_LANES, slot, from);
            found.count = __shfl_sync(ALL_LANES, count, from);
            found.index = number - before - __shfl_sync(ALL_LANES, end - items, from);
            found.first = p.r.expert_offsets[found.expert];
            break;
        }
        before += __shfl_sync(ALL_LANES, end, WARP - 1);
    }
    __syncwarp(); /* all lanes have read the queue */
    if (lane == 0) {
        q->item[q->turn] = found;
        q->number = number + gridDim.x;
        q->base = base;
        q->before = before;
    }
    __syncwarp(); /* for the next call, by the same warp */
}

/* The block's next item, or NULL at the end of the list. For all threads of a block; there is a
 * barrier between any two calls, after the last use of the item before. */
DEVICE const struct moe_item *moe_queue_next(struct moe_queue *q, const struct moe_args_device &p,
                                             int low, int high, int parts, int tokens) {
    int turn = q->turn;
    if (threadIdx.x < WARP)
        moe_queue_find(q, p, low, high, parts, tokens);
    __syncthreads(); /* the item is made, and all threads have read `turn` */
    if (threadIdx.x == 0)
        q->turn = turn ^ 1;
    return q->item[turn].slot >= 0 ? &q->item[turn] : nullptr;
}

/* gate_up: x -> act; down: act -> pair_out; for the experts of each. `average` is the mean number of
 * tokens of an expert. */
void moe_stream_gate_up_launch(const struct moe_args_device *p, cudaStream_t stream);
void moe_stream_down_launch(const struct moe_args_device *p, cudaStream_t stream);
void moe_tile_gate_up_launch(const struct moe_args_device *p, int average, cudaStream_t stream);
void moe_tile_down_launch(const struct moe_args_device *p, int average, cudaStream_t stream);
