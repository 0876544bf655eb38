/* kernels_impl: all kernels of one instruction set, and their table. The including file has defined
 * v16 (vec_<isa>.h) and, where the machine multiplies BF16 pairs, KERNELS_DOT_PAIRS. */
#pragma once

#include "host/cpu/attention_impl.h"

#define KERNELS_TABLE(isa_name, isa_description, pairs)                                            \
    {                                                                                              \
        .name = isa_name, .description = isa_description, .dot = dot, .dot_pairs = pairs,          \
        .round_to_pairs = round_to_pairs, .store_rows = store_rows, .add_units = add_units,        \
        .add_rows = add_rows, .silu_mul = silu_mul, .load_row = row_load, .store_row = row_store,  \
        .norm_rotate = row_norm_rotate, .add_norm = row_add_norm, .sum_squares = row_sum_squares,  \
        .softmax = row_softmax, .attend_partition = attend_partition,                              \
        .attend_merge = attend_merge,                                                              \
    }
