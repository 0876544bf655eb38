/* rt_fixture: what the tests of the runtime's stand-in share. They use the public CUDA API only. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "tests/shim.h"

/* Runs the rest of a test in a child process with PTXVM_STREAMS=mode. False in the parent, which
 * has then checked that the child passed, and returns:
 *
 *     TEST(Suite, Name) {
 *         if (!rt_in_mode("lazy", "Suite.Name"))
 *             return;
 */
bool rt_in_mode(const char *mode, const char *test);
/* A test that runs in all modes: once for each in a child process. */
#define TEST_IN_ALL_MODES(suite, name)                                                             \
    static void in_any_mode_##name(void);                                                          \
    TEST(suite, name##Sync) {                                                                      \
        if (rt_in_mode("sync", #suite "." #name "Sync"))                                           \
            in_any_mode_##name();                                                                  \
    }                                                                                              \
    TEST(suite, name##Async) {                                                                     \
        if (rt_in_mode("async", #suite "." #name "Async"))                                         \
            in_any_mode_##name();                                                                  \
    }                                                                                              \
    TEST(suite, name##Lazy) {                                                                      \
        if (rt_in_mode("lazy", #suite "." #name "Lazy"))                                           \
            in_any_mode_##name();                                                                  \
    }                                                                                              \
    static void in_any_mode_##name(void)

/* The same with any one variable. */
bool rt_with_setting(const char *variable, const char *value, const char *test);
/* The mode that this process runs in. */
bool rt_is_mode(const char *mode);

/* A host function that keeps its stream busy until the gate is opened. */
struct rt_gate {
    _Atomic bool open, reached;
};
void rt_gate_close(struct rt_gate *g, cudaStream_t stream);
void rt_gate_open(struct rt_gate *g);

/* Is the runtime the stand-in? */
bool rt_is_machine(void);
/* Does the last report contain the text? Yes, where the runtime is the real one, which has none. */
bool rt_reported(const char *text);

/* n ints of device memory, all of them v. */
int *rt_device_ints(int n, int v);
/* Element i, after everything in the stream that is ordered with the legacy stream. */
int rt_read_int(const int *p, int i);

#define EXPECT_CUDA(call, code) EXPECT_STR_EQ(cudaGetErrorName(call), #code)
#define ASSERT_CUDA(call)       ASSERT_STR_EQ(cudaGetErrorName(call), "cudaSuccess")
