/* exec: macros that make handlers of instructions from an expression over one lane.
 *
 * Each handler has two loops that the compiler vectorises: all lanes, and the lanes of a mask,
 * which computes every lane and keeps the old value where the mask has none. An expression must
 * therefore be safe for whatever an idle lane's registers hold (no division by zero).
 */
#pragma once

#include "tests/ptxvm/vm.h"

#define VM_OP1(name, TD, TA, expr)                                                                 \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        TD *pd = VM_REG(w, i->d, TD);                                                              \
        const TA *pa = VM_REG(w, i->a, TA);                                                        \
        if (m == VM_ALL) {                                                                         \
            VM_SIMD VM_LANES {                                                                     \
                TA a = pa[l];                                                                      \
                pd[l] = (TD)(expr);                                                                \
            }                                                                                      \
        } else {                                                                                   \
            VM_SIMD VM_LANES {                                                                     \
                TA a = pa[l];                                                                      \
                TD r = (TD)(expr), old = pd[l];                                                    \
                pd[l] = (m >> l & 1) ? r : old;                                                    \
            }                                                                                      \
        }                                                                                          \
    }

#define VM_OP2(name, TD, TA, TB, expr)                                                             \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        TD *pd = VM_REG(w, i->d, TD);                                                              \
        const TA *pa = VM_REG(w, i->a, TA);                                                        \
        const TB *pb = VM_REG(w, i->b, TB);                                                        \
        if (m == VM_ALL) {                                                                         \
            VM_SIMD VM_LANES {                                                                     \
                TA a = pa[l];                                                                      \
                TB b = pb[l];                                                                      \
                pd[l] = (TD)(expr);                                                                \
            }                                                                                      \
        } else {                                                                                   \
            VM_SIMD VM_LANES {                                                                     \
                TA a = pa[l];                                                                      \
                TB b = pb[l];                                                                      \
                TD r = (TD)(expr), old = pd[l];                                                    \
                pd[l] = (m >> l & 1) ? r : old;                                                    \
            }                                                                                      \
        }                                                                                          \
    }

#define VM_OP3(name, TD, TA, TB, TC, expr)                                                         \
    static void name(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {                     \
        TD *pd = VM_REG(w, i->d, TD);                                                              \
        const TA *pa = VM_REG(w, i->a, TA);                                                        \
        const TB *pb = VM_REG(w, i->b, TB);                                                        \
        const TC *pc = VM_REG(w, i->c, TC);                                                        \
        if (m == VM_ALL) {                                                                         \
            VM_SIMD VM_LANES {                                                                     \
                TA a = pa[l];                                                                      \
                TB b = pb[l];                                                                      \
                TC c = pc[l];                                                                      \
                pd[l] = (TD)(expr);                                                                \
            }                                                                                      \
        } else {                                                                                   \
            VM_SIMD VM_LANES {                                                                     \
                TA a = pa[l];                                                                      \
                TB b = pb[l];                                                                      \
                TC c = pc[l];                                                                      \
                TD r = (TD)(expr), old = pd[l];                                                    \
                pd[l] = (m >> l & 1) ? r : old;                                                    \
            }                                                                                      \
        }                                                                                          \
    }
