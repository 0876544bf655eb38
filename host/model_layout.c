/* model_layout: what each rank of the model holds. Ranks on the CPU share a memory, and get parts
 * as even as they go; GPUs get what their memory allows.
 */
#include "host/estimate.h"
#include "host/group.h"
#include "host/model_internal.h"

int32_t model_ranks_of_device(const struct model *m, int32_t i) {
    int32_t n = 0;
    for (int32_t k = 0; k < m->num_ranks; k++)
        n += !m->options.gpus || m->options.gpus[k] == m->options.gpus[i];
    return n;
}

/* What each GPU of the world may take; the processes tell each other. */
static int find_memory(struct model *m, struct layout_options *o, struct error *error) {
    double bytes[MAX_RANKS] = {0};
    for (int32_t i = 0; i < m->num_ranks; i++)
        bytes[ranks_first(m->ranks) + i] =
            (double)m->ops->device_budget(m->options.gpus[i], m->options.gpu_memory_utilization) /
            model_ranks_of_device(m, i);
    struct group *group = ranks_group(m->ranks);
    int rc = group ? group_all_reduce(group, bytes, MAX_RANKS, error) : 0;
    for (int32_t i = 0; i < MAX_RANKS; i++)
        o->memory[i] = (int64_t)bytes[i];
    return rc;
}

/* Several GPUs hold what their memory allows. */
static int fit_to_memory(struct model *m, struct layout_options *o, struct error *error) {
    const struct model_options *options = &m->options;
    int32_t n = ranks_world_size(m->ranks), ep = o->expert_parallel_size;
    const struct estimate_sizes sizes = {
        .max_tokens = options->max_tokens,
        .max_logits = options->max_logits,
        .max_model_len = options->max_model_len,
        .world_size = n,
        .tp_size = ep <= 0  ? n
                   : ep < n ? n / ep
                            : 1,
    };
    int64_t fixed = estimate_activation_bytes(m->config, &sizes);
    if (!options->embedding_on_host)
        fixed += (int64_t)2 * m->config->hidden_size * m->config->vocab_size;
    for (int32_t i = 0; i < n; i++)
        o->fixed[i] = fixed;
    o->elements = layout_elements_of(m->config, m->kv_dtype);
    o->kv_tokens = options->num_kv_blocks > 0 ? (int64_t)options->num_kv_blocks * KV_BLOCK_SIZE
                                              : (int64_t)options->max_seqs * options->max_model_len;
    o->kv_tokens_min = KV_BLOCK_SIZE;
    return find_memory(m, o, error);
}

int model_make_layout(struct model *m, struct error *error) {
    struct layout_options o = m->options.layout;
    int32_t n = ranks_world_size(m->ranks);
    int rc = 0;
    if (o.expert_parallel_size == EXPERT_PARALLEL_ALL)
        o.expert_parallel_size = n;
    if (m->ops->partial_bytes == sizeof(double) && m->options.gpus)
        o.min_unit = 32; /* a tile of the kernels that add units */
    if (m->options.gpus && m->ops->device_budget && n > 1)
        rc = fit_to_memory(m, &o, error);
    if (rc == 0)
        rc = layout_make(m->config, n, &o, &m->layout, error);
    return rc ? rc : layout_check(&m->layout, m->config, error);
}
