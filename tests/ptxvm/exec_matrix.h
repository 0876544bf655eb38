/* exec_matrix: the handlers of ldmatrix, stmatrix, movmatrix and mma. */
#pragma once

#include "tests/ptxvm/vm.h"

/* vm_inst.type: elements of A; of B, which may differ between e4m3 and e5m2 or s8 and u8, i->op. */
enum vm_matrix_type {
    VM_MAT_F16,
    VM_MAT_BF16,
    VM_MAT_TF32,
    VM_MAT_E4M3,
    VM_MAT_E5M2,
    VM_MAT_S8,
    VM_MAT_U8
};

enum { VM_MMA_MAX_K = 32, VM_MMA_MAX_REGS = 14 };

/* i: address, space; vec matrices into or from the registers in more; kind: transposed. */
void vm_ldmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
void vm_stmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
/* i->d becomes the transpose of i->a. */
void vm_movmatrix(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
/* mma.m16n8k<i->size>: more holds the registers of D, A, B, C in turn; D and C have 4 each (or 2
 * of f16, when kind is 1 for D, and sat is 1 for C), A size * bits / 64, B half as many. */
void vm_mma(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
