/* copies: cp.async.
 *
 * A copy is noted when it is issued and done when its lane waits for its group; until then its
 * place in shared memory holds poison, and reading or writing it there is an error. Only the wait
 * makes the bytes good: a kernel that forgets it, or waits for too few groups, never gets them by
 * luck. With PTXVM_ASYNC_COPY=eager the bytes arrive at once.
 */
#pragma once

#include "tests/ptxvm/vm.h"

/* vm_inst.more of an issue: where the address in global memory comes from. */
enum { VM_COPY_FROM, VM_COPY_FROM_LOW, VM_COPY_FROM_HIGH, VM_COPY_FROM_WIDE, VM_COPY_MORE };
/* vm_inst.kind: what i->b is: nothing, the bytes to read (zeros follow), or a predicate that asks
 * for zeros alone. */
enum { VM_COPY_WHOLE, VM_COPY_PART, VM_COPY_UNLESS };

void vm_copy_issue(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
void vm_copy_commit(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
/* i->imm: how many of the last groups may stay on their way; -1: wait for the uncommitted too. */
void vm_copy_wait(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
