/* Ranks on GPUs that are killed, stalled or poisoned (faulty.h), and failures of NCCL's own. Most
 * steps are recorded (CUDA graphs): the rank at fault runs its step without, the others wait for it
 * inside of theirs.
 */
#include <stdlib.h>

#include "tests/faulty.h"
#include "tests/golden_program.h"
#include "tests/gpu_fixture.h"
#include "tests/shim.h"

static const char *const engine_names[] = {"staged", "nccl"};
enum engine_of_test { STAGED, NCCL };

/* A small model on three GPUs, with experts, added by this engine. */
static struct faulty on_gpus(enum engine_of_test engine) {
    static char dir[320];
    static const char *args[] = {
        "--gpus",      "3",  "--model",           dir, "--max-model-len", "128",
        "--allreduce", NULL, "--batch-invariant", NULL};
    golden_program_dir("mixtral", dir, sizeof dir);
    args[7] = engine_names[engine];
    return (struct faulty){.args = args, .ranks = 3, .layers = 2, .tokens = 12, .timeout = "2"};
}

static bool three_gpus(void) {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess && n >= 3;
}

#define THREE_GPUS_OR_SKIP()                                                                       \
    do {                                                                                           \
        GPU_OR_SKIP();                                                                             \
        NEEDS_BINARY();                                                                            \
        if (!three_gpus())                                                                         \
            SKIP("there are fewer than 3 GPUs");                                                   \
    } while (0)

TEST(CudaFaults, ARankThatIsKilledIsStartedAnewAndNobodyNotices) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus(STAGED);
    faulty_check_kills(&f, 20);
}

TEST(CudaFaults, ARankThatStallsEndsTheServerAfterAnAnswerToEveryone) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus(STAGED);
    faulty_check_stalls(&f, 4, 15000000);
}

TEST(CudaFaults, ARankThatReturnsNansFailsTheRequestsOfTheStepAndNoOthers) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus(STAGED);
    faulty_check_nans(&f, 20);
}

TEST(CudaFaults, TheServerIsUnhealthyWhileARankIsStalled) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus(STAGED);
    faulty_check_health(&f);
}
