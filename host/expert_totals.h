/* expert_totals: how backends in host memory keep routing.expert_totals (ops.h). One thread adds,
 * any thread reads; every number is right by itself.
 */
#pragma once

#include <stdint.h>

#include "host/ops.h"

static inline void expert_totals_add(const struct routing *r, int32_t num_experts) {
    int64_t *pairs = r->expert_totals, *steps = pairs + num_experts;
    if (!pairs)
        return;
    for (int32_t e = 0; e < num_experts; e++) {
        int32_t n = r->expert_counts[e];
        __atomic_store_n(&pairs[e], pairs[e] + n, __ATOMIC_RELAXED);
        __atomic_store_n(&steps[e], steps[e] + (n > 0), __ATOMIC_RELAXED);
    }
}

static inline void expert_totals_read(int64_t *out, const int64_t *totals, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = __atomic_load_n(&totals[i], __ATOMIC_RELAXED);
}
