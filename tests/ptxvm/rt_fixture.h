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

/* Does the last report contain the text? Yes, where the runtime is the real one, which has none. */
bool rt_reported(const char *text);

/* n ints of device memory, all of them v. */
int *rt_device_ints(int n, int v);
/* Element i, after everything in the stream that is ordered with the legacy stream. */
int rt_read_int(const int *p, int i);

#define EXPECT_CUDA(call, code) EXPECT_STR_EQ(cudaGetErrorName(call), #code)
#define ASSERT_CUDA(call)       ASSERT_STR_EQ(cudaGetErrorName(call), "cudaSuccess")
