/* model_metrics: what a model tells of itself while it serves (model_measure).
 *
 * Plain data, read at any time by any thread. Counters only grow, and each is right by itself; a
 * step in progress may be in some of them already and in others not yet.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/layout.h"
#include "host/ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rank_metrics {
    int64_t weight_bytes, kv_bytes; /* memory that it holds; 0 for ranks of other processes */
    /* Tokens of its experts, by the shares of their columns that it holds; 0 when experts are not
     * counted. */
    double expert_tokens;
    bool has_comm; /* its time in collectives is measured: */
    int64_t comm_us[NUM_COMM_OPS];
};

/* Start it zeroed; model_metrics_deinit frees what it holds. */
struct model_metrics {
    int32_t num_layers, num_experts; /* L, E; E is 0 in dense models */
    /* [L, E] tokens routed to each; owned; NULL: not counted, or not told now. */
    int64_t *expert_tokens;
    int32_t num_ranks; /* of the layout */
    struct rank_metrics rank[MAX_RANKS];
    bool has_bandwidth;           /* it is measured, and the device has told what it takes: */
    double bandwidth_limit;       /* bytes a second that this process's ranks can read together */
    double bandwidth_utilization; /* of it, in the latest steps; 0 before there was one */
    int64_t read_bytes;           /* that steps had to read */
};

void model_metrics_deinit(struct model_metrics *m);

/* Fullest over mean, over the ranks: 1 is even. 0 when there is nothing to compare. */
double model_metrics_token_imbalance(const struct model_metrics *m);
double model_metrics_byte_imbalance(const struct model_metrics *m);

#ifdef __cplusplus
}
#endif
