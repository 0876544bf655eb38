/* model_measure: what a model counts while it serves, and what it tells of it (model_metrics.h).
 *
 * All ranks route alike, so rank 0 of process 0 counts for all: its router adds to totals of every
 * layer and expert. From these, and the layout, follows what each rank has had to do.
 *
 * Bytes that steps had to read, by the ranks of this process: in every step their weights but the
 * routed experts; of these the shares of each expert that a step routed tokens to; and of every
 * sequence the keys and values of its context (as far as the sliding window reaches), once for all
 * its tokens in the step. Activations, the embedding's rows, what is written, and what kernels read
 * more than once are not counted.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "host/bandwidth.h"
#include "host/expert_totals.h"
#include "host/log.h"
#include "host/mem.h"
#include "host/model_internal.h"

struct model_counters {
    int64_t *totals; /* [L, 2, E] in memory of rank 0's backend, owned; NULL in dense models */
    size_t totals_bytes;
    double bandwidth_limit; /* bytes a second; 0: not measured */
    int64_t fixed_bytes;    /* read in every step */
    int64_t *expert_bytes;  /* [L, E] of all ranks here, owned */
    int64_t kv_token_bytes;
    _Atomic int64_t steps, kv_tokens; /* written by the engine's thread alone */
};

static int64_t num_pairs(const struct model *m) {
    return (int64_t)m->config->num_hidden_layers * m->config->router.num_experts;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static int64_t matrix_bytes(const struct model *m, const struct weight *w) {
    const struct weight_shape shape = {
        .use = w->use,
        .dtype = w->dtype,
        .rows = w->rows,
        .cols = w->cols,
        .scaling = w->block_scale ? FP8_BLOCK : FP8_ROW,
        .block_col0 = w->block_col0,
    };
    return (int64_t)m->ops->weight_bytes(&shape);
}

/* Sizes as the ranks of this process hold them. */
static void add_up_bytes(struct model *m, struct model_counters *k) {
    int32_t E = m->config->router.num_experts;
    k->expert_bytes = xcalloc((size_t)num_pairs(m), sizeof *k->expert_bytes);
    for (int32_t i = 0; i < m->num_ranks; i++) {
        const struct rank *r = &m->rank[i];
        k->fixed_bytes += (int64_t)r->weights_bytes;
        k->kv_token_bytes += (int64_t)(r->kv_bytes / (size_t)m->num_kv_blocks / KV_BLOCK_SIZE);
        for (int32_t l = 0; l < m->config->num_hidden_layers; l++) {
            const struct layer *layer = &r->layers[l];
            for (int32_t e = 0; e < layer->num_experts && layer->router.rows > 0; e++) {
                const struct expert_weights *w = &layer->experts[e];
                int64_t bytes =
                    matrix_bytes(m, &w->gate) + matrix_bytes(m, &w->up) + matrix_bytes(m, &w->down);
                k->expert_bytes[(int64_t)l * E + w->expert] += bytes;
                k->fixed_bytes -= bytes;
            }
        }
    }
}

static void measure_limit(struct model *m, struct model_counters *k) {
    k->bandwidth_limit = m->ops->memory_bandwidth ? 0 : bandwidth_measure(m->options.threads);
    for (int32_t i = 0; i < m->num_ranks && m->ops->memory_bandwidth; i++)
        k->bandwidth_limit +=
            m->ops->memory_bandwidth(m->rank[i].backend) / model_ranks_of_device(m, i);
    if (k->bandwidth_limit <= 0)
        log_warn("--bandwidth-metrics: the memory's limit could not be measured; its use is not "
                 "shown");
    else
        log_info("memory can be read at %.1f GB/s", k->bandwidth_limit / 1e9);
}

/* ---- lifecycle ------------------------------------------------------------------------------- */

static int create_totals(struct model *m, struct model_counters *k, struct error *error) {
    int32_t E = m->config->router.num_experts;
    k->totals_bytes = (size_t)num_pairs(m) * 2 * sizeof *k->totals;
    if (E == 0)
        return 0;
    k->totals = m->ops->alloc(m->rank[0].backend, k->totals_bytes);
    if (!k->totals)
        return model_no_memory(m, &m->rank[0], "expert counters", k->totals_bytes,
                               "leave out --expert-metrics and --bandwidth-metrics", error);
    for (int32_t l = 0; l < m->config->num_hidden_layers; l++)
        m->rank[0].layers[l].expert_totals = k->totals + (int64_t)l * 2 * E;
    return 0;
}

int model_counters_create(struct model *m, struct error *error) {
    bool wanted = m->options.count_experts || m->options.measure_bandwidth;
    if (!wanted || ranks_first(m->ranks) > 0)
        return 0;
    struct model_counters *k = m->counters = xcalloc(1, sizeof *k);
    if (m->options.measure_bandwidth) {
        add_up_bytes(m, k);
        measure_limit(m, k);
    }
    return create_totals(m, k, error);
}

void model_counters_destroy(struct model *m) {
    struct model_counters *k = m->counters;
    if (!k)
        return;
    m->ops->free(m->rank[0].backend, k->totals, k->totals_bytes);
    free(k->expert_bytes);
    free(k);
}

/* ---- counting -------------------------------------------------------------------------------- */

static void add_relaxed(_Atomic int64_t *sum, int64_t n) {
    atomic_store_explicit(sum, atomic_load_explicit(sum, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

void model_count_step(struct model *m, const struct batch *b) {
    int32_t window = m->config->sliding_window;
    int64_t tokens = 0;
    if (!m->counters || m->counters->bandwidth_limit <= 0)
        return;
    for (int32_t s = 0; s < b->num_seqs; s++) {
        int32_t seen = window + b->cu_seqlens[s + 1] - b->cu_seqlens[s] - 1;
        tokens += window > 0 && seen < b->seq_lens[s] ? seen : b->seq_lens[s];
    }
    add_relaxed(&m->counters->steps, 1);
    add_relaxed(&m->counters->kv_tokens, tokens);
}

/* ---- telling --------------------------------------------------------------------------------- */

static void tell_ranks(const struct model *m, struct model_metrics *out) {
    int32_t first = ranks_first(m->ranks);
    out->num_ranks = m->layout.world_size;
    for (int32_t i = 0; i < m->num_ranks; i++) {
        struct rank_metrics *rank = &out->rank[first + i];
        rank->weight_bytes = (int64_t)m->rank[i].weights_bytes;
        rank->kv_bytes = (int64_t)m->rank[i].kv_bytes;
        rank->has_comm = !m->ops->peek && out->num_ranks > 1; /* on GPUs no clock sees it */
        for (int32_t op = 0; op < NUM_COMM_OPS && rank->has_comm; op++)
            rank->comm_us[op] = ranks_comm_us(m->ranks, i, op);
    }
}

/* The tokens of each rank's experts, by the share of their columns. */
static void tell_loads(const struct model *m, struct model_metrics *out) {
    int32_t E = out->num_experts;
    for (int32_t r = 0; r < out->num_ranks; r++) {
        const struct rank_layout *l = &m->layout.rank[r];
        int64_t tokens = 0;
        for (int32_t i = 0; i < out->num_layers; i++)
            for (int32_t e = l->experts.first; e < l->experts.first + l->experts.count; e++)
                tokens += out->expert_tokens[(int64_t)i * E + e];
        out->rank[r].expert_tokens =
            (double)tokens * l->expert_columns.count / m->config->moe_intermediate_size;
    }
}

static void tell_bandwidth(const struct model_counters *k, const int64_t *totals,
                           struct model_metrics *out) {
    int32_t E = out->num_experts;
    out->has_bandwidth = true;
    out->bandwidth_limit = k->bandwidth_limit;
    out->read_bytes = atomic_load_explicit(&k->steps, memory_order_relaxed) * k->fixed_bytes +
                      atomic_load_explicit(&k->kv_tokens, memory_order_relaxed) * k->kv_token_bytes;
    for (int32_t l = 0; l < out->num_layers && totals; l++)
        for (int32_t e = 0; e < E; e++)
            out->read_bytes +=
                totals[((int64_t)l * 2 + 1) * E + e] * k->expert_bytes[(int64_t)l * E + e];
}

/* The totals as they are now, to be freed; NULL without any, or when the device does not give them.
 */
static int64_t *read_totals(struct model *m) {
    const struct model_counters *k = m->counters;
    if (!k || !k->totals)
        return NULL;
    int64_t *totals = xcalloc(1, k->totals_bytes);
    if (!m->ops->peek) {
        expert_totals_read(totals, k->totals, 2 * num_pairs(m));
    } else if (!m->ops->peek(m->rank[0].backend, totals, k->totals, k->totals_bytes)) {
        free(totals);
        totals = NULL;
    }
    return totals;
}

static void tell_experts(const struct model *m, const int64_t *totals, struct model_metrics *out) {
    int32_t E = out->num_experts;
    if (!out->expert_tokens)
        out->expert_tokens = xcalloc((size_t)num_pairs(m), sizeof *out->expert_tokens);
    for (int32_t l = 0; l < out->num_layers; l++)
        for (int32_t e = 0; e < E; e++)
            out->expert_tokens[(int64_t)l * E + e] = totals[(int64_t)l * 2 * E + e];
    tell_loads(m, out);
}

/* Without the totals what they are part of is left out: a counter must not fall. */
void model_measure(struct model *m, struct model_metrics *out) {
    const struct model_counters *k = m->counters;
    int64_t *totals = read_totals(m);
    model_metrics_deinit(out); /* of an earlier call */
    out->num_layers = m->config->num_hidden_layers;
    out->num_experts = m->config->router.num_experts;
    tell_ranks(m, out);
    if (totals && m->options.count_experts)
        tell_experts(m, totals, out);
    if (k && k->bandwidth_limit > 0 && (totals || !k->totals))
        tell_bandwidth(k, totals, out);
    free(totals);
}
