#include "metrics.h"

#include "host/error.h"

static const double FIRST_TOKEN_BOUNDS[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                            0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                            20,    40,    80,   160,  640,  2560};
static const double TOKEN_BOUNDS[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                      0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double REQUEST_BOUNDS[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double COUNT_BOUNDS[] = {1,   2,   5,   10,  20,  50,  100, 200, 500, 1e3, 2e3, 5e3,
                                      1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7};
static const double STEP_TOKENS_BOUNDS[] = {1,   8,    16,   32,   64,   128,  256,
                                            512, 1024, 2048, 4096, 8192, 16384};
static const double STEP_BOUNDS[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                     0.25,   0.5,   1,      2.5,   5,    10,    30,   60};

static const struct histogram_info infos[] = {
#define X(id, hist_name, limits, text)                                                             \
    [id] = {.name = (hist_name),                                                                   \
            .help = (text),                                                                        \
            .bounds = (limits),                                                                    \
            .num_bounds = (int32_t)(sizeof(limits) / sizeof *(limits))},
    HISTOGRAM_TABLE(X)
#undef X
};

#define X(id, name, limits, text)                                                                  \
    _Static_assert(sizeof(limits) / sizeof *(limits) <= MAX_HISTOGRAM_BOUNDS, name);
HISTOGRAM_TABLE(X)
#undef X

const struct histogram_info *histogram_info(enum histogram_id id) {
    return &infos[id];
}

int32_t histogram_num_bounds(enum histogram_id id, int32_t max_model_len) {
    const struct histogram_info *info = &infos[id];
    int32_t n = info->num_bounds;
    while (info->bounds == COUNT_BOUNDS && n > 1 && info->bounds[n - 1] > max_model_len)
        n--;
    return n;
}

void metrics_observe(struct metrics *m, enum histogram_id id, double value) {
    const struct histogram_info *info = &infos[id];
    struct histogram *h = &m->histogram[id];
    int32_t i = 0;
    while (i < info->num_bounds && value > info->bounds[i])
        i++;
    h->counts[i]++;
    h->sum += value;
}

void metrics_count_failure(struct metrics *m, int code) {
    CHECK(code < 0 && code > -MAX_ERROR_CODES, "error code %d", code);
    m->failures[-code]++;
}

int64_t histogram_count(const struct histogram *h) {
    int64_t count = 0;
    for (int32_t i = 0; i <= MAX_HISTOGRAM_BOUNDS; i++)
        count += h->counts[i];
    return count;
}

void metrics_add(struct metrics *sum, const struct metrics *m) {
    for (int32_t id = 0; id < NUM_HISTOGRAMS; id++) {
        for (int32_t i = 0; i <= MAX_HISTOGRAM_BOUNDS; i++)
            sum->histogram[id].counts[i] += m->histogram[id].counts[i];
        sum->histogram[id].sum += m->histogram[id].sum;
    }
    for (int32_t i = 0; i < MAX_FINISH_REASONS; i++)
        sum->finished[i] += m->finished[i];
    for (int32_t i = 0; i < MAX_ERROR_CODES; i++)
        sum->failures[i] += m->failures[i];
}
