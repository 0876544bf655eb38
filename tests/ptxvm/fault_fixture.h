/* fault_fixture: deliberately broken kernels, each of which the machine has to report with the
 * right words, kernel, line and thread, and their correct twins, which it has to run.
 *
 * Each case is the body of a kernel k(uint32_t *data). Its blocks have 64 threads unless it says
 * otherwise; data has 256 bytes and so has the shared array sh. The instruction that is to be
 * reported stands on the line with "<<", the other half of a race on the one with ">>". A case
 * runs in a process of its own, so that a crash or another environment stays there.
 *
 * Before the body: %r1 thread, %r2 address of sh, %r3 thread * 4, %r4 that of sh[thread], %r6
 * block, %rd1 data, %rd3 address of data[thread]; %p1 thread 0, %p2 a thread below 16, %p3 warp 0.
 */
#pragma once

#include "tests/ptxvm/machine.h"
#include "tests/shim.h"

enum fault_memory { DEVICE, FREED, HOST, REGISTERED, OTHER_DEVICE };

struct fault_case {
    const char *name, *body;
    enum vm_result result;
    const char *words;      /* in the report; NULL with VM_OK */
    const char *who;        /* block and thread, as the report writes them; NULL: any */
    const char *source;     /* the place in the source, where a line of the PTX is not it */
    const char *directives; /* before the body's brace; NULL: none */
    enum fault_memory memory;
    uint32_t blocks, threads, height;     /* 0: 1, 64 and 1; height: of a block, in threads */
    size_t dynamic_shared, dynamic_limit; /* 0: none, and 48 KiB */
    bool races;
};

void fault_expect(const struct fault_case *cases, size_t count);
#define FAULT_EXPECT(cases) fault_expect(cases, sizeof(cases) / sizeof *(cases))
