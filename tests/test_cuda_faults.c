/* Ranks on GPUs that are killed, stalled or poisoned (faulty.h), and failures of NCCL's own. Most
 * steps are recorded (CUDA graphs): the rank at fault runs its step without, the others wait for it
 * inside of theirs.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda/nccl.h"
#include "tests/faulty.h"
#include "tests/golden_program.h"
#include "tests/gpu_fixture.h"
#include "tests/shim.h"

/* A small model on three GPUs, with experts, added by this engine. */
static struct faulty on_gpus(const char *engine) {
    static char dir[320];
    static const char *args[] = {
        "--gpus",      "3",  "--model",           dir, "--max-model-len", "128",
        "--allreduce", NULL, "--batch-invariant", NULL};
    golden_program_dir("mixtral", dir, sizeof dir);
    args[7] = engine;
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
    struct faulty f = on_gpus("staged");
    faulty_check_kills(&f, 8);
}

TEST(CudaFaults, ARankThatStallsEndsTheServerAfterAnAnswerToEveryone) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus("staged");
    faulty_check_stalls(&f, 3, 15000000);
}

TEST(CudaFaults, ARankThatReturnsNansFailsTheRequestsOfTheStepAndNoOthers) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus("staged");
    faulty_check_nans(&f, 8);
}

TEST(CudaFaults, TheServerIsUnhealthyWhileARankIsStalled) {
    THREE_GPUS_OR_SKIP();
    struct faulty f = on_gpus("staged");
    faulty_check_health(&f);
}

/* ---- NCCL ------------------------------------------------------------------------------------ */

#define NCCL_OR_SKIP()                                                                             \
    do {                                                                                           \
        static struct error no_nccl;                                                               \
        THREE_GPUS_OR_SKIP();                                                                      \
        if (nccl_open(&no_nccl) != 0)                                                              \
            SKIP(no_nccl.text);                                                                    \
    } while (0)

TEST(CudaFaults, RanksThatNcclConnectsAreKilledStalledAndPoisonedToo) {
    NCCL_OR_SKIP();
    struct faulty f = on_gpus("nccl");
    faulty_check_kills(&f, 3);
    faulty_check_nans(&f, 2);
    faulty_check_stalls(&f, 1, 15000000);
}

/* Of the stand-ins, whose NCCL fails when it is told to; with synchronous streams its calls wait
 * themselves. */
extern const char *ptxvm_last_report(void) __attribute__((weak));
static bool can_have_faults(void) {
    const char *mode = getenv("PTXVM_STREAMS");
    return ptxvm_last_report && !(mode && !strcmp(mode, "sync"));
}
#define FAULTS_OR_SKIP()                                                                           \
    do {                                                                                           \
        NCCL_OR_SKIP();                                                                            \
        if (!can_have_faults())                                                                    \
            SKIP("a fault of NCCL cannot be asked for here");                                      \
    } while (0)

/* A server in whose NCCL an operation fails or hangs, time and again: a new communicator counts its
 * operations anew. */
static void check_recovers(const struct faulty *f, const char *name, const char *value,
                           const struct answers *want) {
    setenv(name, value, 1);
    faulty_check_unnoticed(f, NULL, f->timeout, want);
    unsetenv(name);
    if (shim_failed())
        FAIL("%s=%s", name, value);
}

TEST(CudaFaults, StepsInWhichNcclFailsOrHangsAreDoneAgain) {
    FAULTS_OR_SKIP();
    struct faulty f = on_gpus("nccl");
    struct answers want;
    ASSERT_TRUE(faulty_reference(&f, &want));
    check_recovers(&f, "PTXVM_NCCL_FAIL", "rank=1,op=40", &want);
    check_recovers(&f, "PTXVM_NCCL_HANG", "rank=2,op=70", &want);
}

/* The first step of every communicator. */
TEST(CudaFaults, NcclThatAlwaysFailsEndsTheServer) {
    FAULTS_OR_SKIP();
    struct faulty f = on_gpus("nccl");
    struct answers want;
    ASSERT_TRUE(faulty_reference(&f, &want));
    setenv("PTXVM_NCCL_FAIL", "rank=0,op=3", 1);
    faulty_check_given_up(&f, "as PTXVM_NCCL_FAIL asks for", &want);
    unsetenv("PTXVM_NCCL_FAIL");
}

/* Joining, the test of it, and timing beside the built-in engine. */
TEST(CudaFaults, NcclThatDoesNotComeUpIsLeftOut) {
    FAULTS_OR_SKIP();
    struct faulty f = on_gpus("auto");
    struct answers want;
    ASSERT_TRUE(faulty_reference(&f, &want));
    check_recovers(&f, "PTXVM_NCCL_INIT", "fail,rank=1", &want);
    check_recovers(&f, "PTXVM_NCCL_HANG", "rank=0,op=1", &want);
    check_recovers(&f, "PTXVM_NCCL_FAIL", "rank=0,op=3", &want);
    check_recovers(&f, "PTXVM_NCCL_HANG", "rank=1,op=3", &want);
}
