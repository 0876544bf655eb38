/* access: the addresses of a memory instruction, checked and turned into addresses of the host.
 *
 * Every instruction that touches memory goes through vm_resolve, so that the checks, the shadow of
 * shared memory and the race detector see all of them.
 */
#pragma once

#include "tests/ptxvm/vm.h"

enum vm_access_kind { VM_READ, VM_WRITE, VM_UPDATE };

/* The address of each lane: register plus displacement. Lanes outside of any mask get one too. */
void vm_addresses(const struct vm_warp *w, uint32_t base, bool wide, int64_t displacement,
                  uint64_t at[VM_WARP]);
/* Checks an access of the lanes of m, of bytes (a power of 2, the alignment too) in a space, and
 * replaces their addresses by those of the host. */
void vm_resolve(struct vm_warp *w, const struct vm_inst *i, uint32_t m, enum ptx_space space,
                uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind);
/* Splits generic addresses by what they point at: the lanes of m in that window, whose addresses
 * lose it. */
uint32_t vm_window_lanes(uint32_t m, uint64_t window, uint64_t at[VM_WARP]);
/* Tells the race detector of the order of an access (enum vm_order); addresses as the kernel knows
 * them. */
void vm_order_lanes(struct vm_warp *w, uint32_t m, enum ptx_space space, const uint64_t at[VM_WARP],
                    uint32_t order);
/* The single parts, for cp.async. Addresses stay as they are. */
void vm_check_aligned(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                      const uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind);
void vm_check_global(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                     const uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind);
void vm_check_shared(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                     const uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind);
/* The states that all bytes of all lanes have, eight times. They are known to lie inside of the
 * block's shared memory. */
uint64_t vm_shadow_all(const uint8_t *shadow, const uint32_t at[VM_WARP], uint32_t bytes);
/* A poll of memory: gives the other lanes, warps and blocks their turn. */
void vm_poll(struct vm_warp *w, uint32_t m);
