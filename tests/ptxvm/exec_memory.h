/* exec_memory: the handlers of ld and st, and what decode_memory.c chooses among. */
#pragma once

#include "tests/ptxvm/vm.h"

/* vm_inst.type: an element in memory. */
enum vm_element { VM_U8, VM_U16, VM_U32, VM_U64, VM_S8, VM_S16, VM_S32, VM_NUM_ELEMENTS };

/* Read from i: a, wide, imm (address), space, order, type, size (bytes of an element), vec and
 * more (registers), kind (0, 1, 2: registers of 2, 4, 8 bytes). */
void vm_load(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
void vm_store(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
/* The handler for a ld or st of shared memory that orders nothing; i is decoded but for it. */
vm_exec vm_shared_handler(const struct vm_inst *i, bool store);
/* The same for a ld of a kernel's parameters. */
vm_exec vm_param_handler(const struct vm_inst *i);
