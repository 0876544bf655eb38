/* stats_json: the answer of GET /stats, one JSON object for people's pages and scripts:
 *
 *   {"model":{"name","max_model_len","vocab_size","ranks","num_layers","num_experts"},
 *    "running","waiting","waiting_tokens","kv_blocks_used","kv_blocks_cached","kv_blocks_total",
 *    "requests_total","prompt_tokens_total","completion_tokens_total","prefix_hit_tokens_total",
 *    "preemptions_total","steps_total","last_step_age_ms","healthy","connections","uptime_s",
 *    "replicas":[{the counters from "running" to "healthy"}],
 *    "ranks":[{"replica","rank","expert_tokens","bytes"}],
 *    "experts":{"enabled","counts":[[E numbers] of each of L layers]}}
 *
 * last_step_age_ms is null before the first step; connections where they are not known. ranks are
 * those of every replica, a rank's expert_tokens null without --expert-metrics, and its bytes null
 * in another process. counts is [] without --expert-metrics; its layers without experts (dense
 * ones) have zeros.
 */
#pragma once

#include "host/buffer.h"
#include "net/metrics_text.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Appends the object. */
void stats_json(struct buffer *out, const struct metrics_sources *s);

#ifdef __cplusplus
}
#endif
