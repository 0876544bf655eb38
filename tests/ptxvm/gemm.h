/* gemm: matrix products on the CPU for the stand-ins of cuBLAS and cuBLASLt.
 *
 *     D = epilogue(alpha * op(A) * op(B) + beta * C)
 *
 * All matrices are column-major; op(A) is [m, k], op(B) is [k, n], C and D are [m, n]. Elements are
 * widened to float32, products are accumulated in float32 from k = 0 on, and each result is
 * rounded once, when it is stored. Beta 0 does not read C.
 */
#pragma once

#include <library_types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gemm {
    bool trans_a, trans_b;
    int64_t m, n, k;
    cudaDataType a_type, b_type, c_type, d_type;
    const void *a, *b, *c;
    void *d;
    int64_t lda, ldb, ldc, ldd; /* elements from one column to the next */
    float alpha, beta;
    const void *bias; /* [m], added to each column after beta * C; NULL: none */
    cudaDataType bias_type;
    bool relu; /* after the bias */
};

void gemm_run(const struct gemm *g);

/* Bytes of an element; 0 when the type is not one that gemm_run reads. */
size_t gemm_type_bytes(cudaDataType t);
/* Bytes from the first to the last element of a matrix of that many rows and columns. */
size_t gemm_extent(cudaDataType t, int64_t rows, int64_t cols, int64_t ld);
