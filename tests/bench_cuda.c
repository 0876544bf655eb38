/* bench_cuda: each CUDA kernel against the measured ceilings of this GPU.
 *
 *   bench_cuda [--filter TEXT] [--quick] [--tiny] [--repeats N] [--seconds N] [--json FILE]
 *
 * One line a case: the median microseconds of a launch and their range, GB/s as a share of the
 * faster one of two copies, TFLOP/s as a share of cuBLASLt's bf16 product. Names are
 * "group/model type shape"; --filter runs those that contain the text. --quick leaves shapes out,
 * --tiny has toy shapes only and shows that the benchmark works (on the PTX machine, whose figures
 * mean nothing). After --seconds no new case starts, and what is left is printed as not run.
 */
#include <stdlib.h>
#include <string.h>

#include "host/clock.h"
#include "tests/bench_gpu.h"

static int usage(void) {
    fprintf(stderr,
            "usage: bench_cuda [--filter TEXT] [--quick] [--tiny] [--repeats N (3 to %d)] "
            "[--seconds N] [--json FILE]\n",
            BENCH_MAX_REPEATS);
    return 2;
}

int main(int argc, char **argv) {
    static struct bench b = {.repeats = 7};
    const char *json = NULL;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--quick"))
            b.quick = true;
        else if (!strcmp(argv[i], "--tiny"))
            b.tiny = b.quick = true;
        else if (!strcmp(argv[i], "--filter") && more)
            b.filter = argv[++i];
        else if (!strcmp(argv[i], "--repeats") && more)
            b.repeats = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--seconds") && more)
            b.deadline_us = clock_us() + (int64_t)atoi(argv[++i]) * 1000000;
        else if (!strcmp(argv[i], "--json") && more)
            json = argv[++i];
        else
            return usage();
    }
    if (b.repeats < 3 || b.repeats > BENCH_MAX_REPEATS)
        return usage();
    if (!bench_open(&b))
        return 1;
    printf("%s, sm_%d, %d multiprocessors, %.1f MB of L2; medians of %d\n", b.device, b.gpu.sm,
           b.gpu.num_sms, (double)b.gpu.l2_bytes / 1e6, b.repeats);
    if (b.stand_in)
        printf("This is a stand-in for a GPU: the figures mean nothing.\n");
    bench_measure_ceilings(&b);
    bench_moe(&b);
    bench_dense(&b);
    bench_attention(&b);
    bench_rows(&b);
    bench_allreduce(&b);
    printf("%d cases, %d not run\n", b.num_done, b.num_not_run);
    int rc = json ? bench_write_json(&b, json) : 0;
    bench_close(&b);
    return rc == 0 ? 0 : 1;
}
