#include "host/model_metrics.h"

#include <stdlib.h>
#include <string.h>

void model_metrics_deinit(struct model_metrics *m) {
    free(m->expert_tokens);
    memset(m, 0, sizeof *m);
}

static double imbalance(const double *of_rank, int32_t n) {
    double most = 0, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += of_rank[i];
        most = of_rank[i] > most ? of_rank[i] : most;
    }
    return sum > 0 ? most * n / sum : 0;
}

double model_metrics_token_imbalance(const struct model_metrics *m) {
    double tokens[MAX_RANKS];
    for (int32_t i = 0; i < m->num_ranks; i++)
        tokens[i] = m->rank[i].expert_tokens;
    return imbalance(tokens, m->num_ranks);
}

double model_metrics_byte_imbalance(const struct model_metrics *m) {
    double bytes[MAX_RANKS];
    int32_t n = 0;
    for (int32_t i = 0; i < m->num_ranks; i++)
        if (m->rank[i].weight_bytes + m->rank[i].kv_bytes > 0)
            bytes[n++] = (double)(m->rank[i].weight_bytes + m->rank[i].kv_bytes);
    return imbalance(bytes, n);
}
