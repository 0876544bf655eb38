/* machine_fixture: kernels written as PTX text, run by the machine in the test's own process.
 *
 * Buffers are device memory that the test may read and write itself. What a test finds wrong is
 * recorded as its failure here, with the machine's report.
 */
#pragma once

#include "tests/ptxvm/machine.h"
#include "tests/shim.h"

/* Filled with 0xff bytes. For PTXVM_PROTECT, device memory is within reach until it is freed. */
void *machine_alloc(size_t bytes);
void machine_free(void *p);

/* Loads functions and variables, which need no header. NULL, and a failure, when it does not. */
struct vm_module *machine_load(const char *text);
/* Runs an entry of a module whose only parameter is a pointer. False, and a failure, when the
 * machine finds a fault. */
bool machine_run(const struct vm_module *m, const char *name, uint32_t blocks, uint32_t threads,
                 void *data);

/* Loads and runs the body of a kernel. Its registers are %p0 .. 15 (predicates), %h0 .. 31 (16
 * bits), %r0 .. 63 (32 bits) and %d0 .. 31 (64 bits); it finds the pointer in %d0, the thread in
 * %r0, the block in %r1, its number in the grid in %r2, and the address of the 32-bit word of that
 * number in %d1. `before` is what stands before the kernel, NULL for nothing. */
bool machine_run_body(const char *before, const char *body, uint32_t blocks, uint32_t threads,
                      void *data);

/* The same under every schedule of lanes and warps, and with the search for races. `prepare` fills
 * the buffer before each run, and `check` looks at it afterwards. */
struct machine_case {
    const char *before, *body;
    uint32_t blocks, threads;
    uint32_t words; /* of the buffer */
    void (*prepare)(uint32_t *data);
    void (*check)(const uint32_t *data);
};
void machine_run_case(const struct machine_case *c);

/* One instruction on many values: thread n executes it with the sources of items[n], which its
 * result joins. Widths are those of the result and of the sources: h 16, w 32, x 64 bits, and p a
 * predicate, as 0 or 1. */
struct machine_op {
    const char *op, *widths;
    const char *last; /* an operand that follows, such as the table of lop3; NULL: none */
};
struct machine_item {
    uint64_t result, source[3];
};
/* The results are cut to their width. False, and a failure, when it cannot be executed. */
bool machine_execute(const struct machine_op *op, struct machine_item *items, uint32_t count);
