/* bench_cuda: the built-in all-reduce with the norm behind it, between ranks that are groups of
 * blocks of one grid: they exchange through pinned host memory as GPUs of their own would, so that
 * the latency of its hops and the rate at which multiprocessors read it are measured on one GPU.
 * The link is shared by all ranks, so large arrays take up to num_ranks times as long as with a GPU
 * each.
 *
 * Calls have numbers of their own, as in a step: of the sets, and a step number that set 0 raises.
 */
#include "cuda/cuda_check.h"
#include "cuda/staged.h"
#include "tests/bench_gpu.h"
#include "tests/cuda_allreduce_group.h"

enum { SETS = 32 };

struct allreduce_case {
    struct allreduce_group group[SETS];
    uint32_t *step;
};

static void launch_allreduce(void *context, int32_t set, cudaStream_t stream) {
    const struct allreduce_case *c = context;
    if (set == 0)
        allreduce_group_next_step(c->step, stream);
    allreduce_group_launch(&c->group[set], stream);
}

/* Arrays of a rank for T rows of H. */
static struct allreduce_array random_array(struct bench *b, int32_t T, int32_t H) {
    int64_t n = (int64_t)T * H;
    return (struct allreduce_array){
        .partial = bench_random_floats(b, n, 1),
        .num_rows = T,
        .row_len = H,
        .count = n,
        .norm = {.x = bench_alloc(b, (size_t)n * sizeof(bf16)),
                 .hidden = bench_random_floats(b, n, 1),
                 .weight = bench_random_floats(b, H, 1),
                 .eps = 1e-5f,
                 .num_tokens = T,
                 .hidden_size = H},
    };
}

static void run_rows(struct bench *b, struct staged *s, int32_t n, enum allreduce_way way,
                     enum allreduce_payload payload, int32_t T, int32_t H) {
    struct allreduce_array arrays[ALLREDUCE_MAX_RANKS];
    struct allreduce_channel channels[ALLREDUCE_MAX_RANKS];
    struct allreduce_case c;
    char name[96];
    snprintf(name, sizeof name, "allreduce/%d ranks %s %s H=%d T=%d", n,
             payload == PAYLOAD_F8 ? "fp8" : "bf16", way == ALLREDUCE_LINES ? "lines" : "flags", H,
             T);
    if (!bench_wanted(b, name))
        return;
    uint32_t zero = 0;
    c.step = bench_upload(b, &zero, sizeof zero);
    for (int32_t r = 0; r < n; r++) {
        arrays[r] = random_array(b, T, H);
        staged_set_step(s, r, c.step);
        staged_begin_step(s, r);
    }
    struct allreduce_array *device_arrays = bench_upload(b, arrays, (size_t)n * sizeof *arrays);
    for (int32_t set = 0; set < SETS; set++) {
        for (int32_t r = 0; r < n; r++)
            channels[r] = staged_next_channel(s, r, way);
        c.group[set] = (struct allreduce_group){
            .channels = bench_upload(b, channels, (size_t)n * sizeof *channels),
            .arrays = device_arrays,
            .num_ranks = n,
            .num_rows = T,
            .row_len = H,
            .num_blocks = staged_num_blocks(s),
            .way = way,
            .payload = payload,
            .norm = true,
        };
    }
    struct bench_case run = {.name = name, .sets = SETS, .launch = launch_allreduce, .context = &c};
    if (bench_ready(b, name))
        bench_run(b, &run);
    bench_release(b);
    staged_reset(s);
}

void bench_allreduce(struct bench *b) {
    static const int32_t counts[] = {1, 2, 8, 32, 64};
    static const int32_t devices[ALLREDUCE_MAX_RANKS] = {0}; /* all on the first */
    int32_t n = b->gpu.num_sms < 8 ? b->gpu.num_sms : 8, H = b->tiny ? 76 : 4608;
    struct staged *s;
    struct error error = {0};
    struct staged_config config = {
        .num_ranks = n,
        .devices = devices,
        .hidden_size = H,
        .timeout_ns = 10 * (int64_t)1000000000,
        .lines_bytes = 64 << 10,
        .flags_bytes = 2 << 20,
    };
    if (staged_create(&s, &config, &error) != 0) {
        printf("allreduce: %s\n", error.text);
        return;
    }
    for (size_t i = 0; i < (b->tiny ? 2 : sizeof counts / sizeof *counts); i++) {
        if (counts[i] * H * 2 <= config.lines_bytes)
            run_rows(b, s, n, ALLREDUCE_LINES, PAYLOAD_BF16, counts[i], H);
        run_rows(b, s, n, ALLREDUCE_FLAGS, PAYLOAD_BF16, counts[i], H);
        run_rows(b, s, n, ALLREDUCE_FLAGS, PAYLOAD_F8, counts[i], H);
    }
    staged_destroy(s);
}
