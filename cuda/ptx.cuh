/* ptx: every inline PTX instruction of the project, one wrapper each.
 *
 * Fragments of mma.m16n8k16 (lane l, g = l / 4, t = l % 4; two elements a register, low half first):
 *   A [16, 16]  a[0] row g   k 2t, 2t+1     a[1] row g+8 the same     a[2], a[3] the same, k + 8
 *   B [16, 8]   b[0] column g, k 2t, 2t+1   b[1] the same, k + 8
 *   C [16, 8]   c[0], c[1] row g, columns 2t, 2t+1                    c[2], c[3] row g+8
 * and of mma.m16n8k32 with 8-bit elements, four a register:
 *   A           a[0] row g   k 4t .. 4t+3   a[1] row g+8              a[2], a[3] the same, k + 16
 *   B           b[0] column g, k 4t ..      b[1] the same, k + 16
 * (PTX ISA, "Matrix Fragments for mma".)
 */
#pragma once

#include <stdint.h>

#define DEVICE static __device__ __forceinline__

/* The 32-bit address of a shared variable, as the instructions below take it. */
DEVICE uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* The same number, of which the compiler knows nothing: what is computed from it inside of a loop stays
 * there instead of taking registers outside. */
DEVICE int opaque(int v) {
    asm volatile("" : "+r"(v));
    return v;
}

/* ---- asynchronous copies, global to shared ----------------------------------------------------- */

/* 16 bytes, past the L1 cache; zeros when !valid (global must be a valid address all the same). The
 * bytes are there after commit, wait and a barrier. */
DEVICE void cp_async16(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until all but the last N groups of this thread have arrived. */
template <int N> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- loads of weights: read once, so kept out of the L1 cache ---------------------------------- */

DEVICE uint4 load_stream16(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

DEVICE uint2 load_stream8(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p));
    return v;
}

/* ---- memory that other GPUs and the host write too --------------------------------------------- */

/* Accesses of single values that are never torn and never held in a cache (relaxed, system-wide);
 * with acquire and release they also order what the thread, and those that it met at a barrier, read
 * after and wrote before. A pair is two values of 8 bytes, each whole in itself, in any order. */
DEVICE uint32_t load_relaxed(const uint32_t *p) {
    uint32_t v;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE uint32_t load_acquire(const uint32_t *p) {
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE void store_release(uint32_t *p, uint32_t v) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
DEVICE uint64_t load_relaxed_u64(const uint64_t *p) {
    uint64_t v;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}
DEVICE void store_relaxed_u64(uint64_t *p, uint64_t v) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
DEVICE ulonglong2 load_relaxed_pair(const void *p) {
    ulonglong2 v;
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(v.x), "=l"(v.y)
                 : "l"(p)
                 : "memory");
    return v;
}
DEVICE void store_relaxed_pair(void *p, uint64_t first, uint64_t second) {
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(first), "l"(second)
                 : "memory");
}

/* Nanoseconds of a clock that all GPUs of a machine count alike, in steps of up to a microsecond. */
DEVICE uint64_t global_timer() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

/* ---- matrices ---------------------------------------------------------------------------------- */

/* Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 and
 * gets elements 2 (l % 4), + 1 of row l / 4 of each. */
DEVICE void ldmatrix_x4(uint32_t r[4], const void *shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}
/* The same of the transposed matrices: elements (2 (l % 4), + 1; l / 4). */
DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

/* c += A B, bf16 and f16 elements, float32 sums. */
DEVICE void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
/* c += A B, E4M3 elements (m16n8k32). Sums are float32, but Ada and Hopper keep 13 bits of mantissa
 * on the way: long sums are to be cut into chains of a few mma and added outside. */
DEVICE void mma_e4m3(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

/* ---- arithmetic -------------------------------------------------------------------------------- */

/* 2^x within 2 ulp; 2^0 is 1, 2^-inf is 0, and results below 2^-126 are 0. */
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
/* Two E4M3 as two f16, exactly, NaNs too. */
DEVICE uint32_t convert_e4m3_f16(uint16_t pair) {
    uint32_t v;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"(pair));
    return v;
}
#endif
