/* decode_memory: the qualifiers that instructions on memory share. */
#pragma once

#include "tests/ptxvm/decode.h"

/* i->space of the opcode's state space; .param is the kernel's parameters or the caller's frame,
 * by the address. */
void vm_decode_space(struct vm_decoder *d, const struct ptx_operand *address, struct vm_inst *i);
/* i->order of .relaxed, .acquire, ...; absent: weak, or relaxed when the access is atomic. */
void vm_decode_order(const struct vm_decoder *d, bool atomic, struct vm_inst *i);
