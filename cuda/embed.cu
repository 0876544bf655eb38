/* embed: rows of the embedding table, as float32
 *
 * Shapes   hidden [T, H] float; table [V, H] bf16, in device memory or in mapped pinned host memory;
 *          tokens [T].
 * Launch   grid (T, H / 2048 rounded up), block 256; 8 elements a thread: one 16-byte load. All loads
 *          of a row are under way at once, which a table in host memory needs: a PCIe round trip
 *          takes a microsecond, and one token's row then costs about one.
 * Bytes    2*T*H read, 4*T*H written; bandwidth-bound.
 * Numerics exact.
 * Requires tokens in [0, V), those of padded rows too. H % 8 == 0 and a table aligned to 16 bytes take
 *          the 16-byte loads; anything else takes 2-byte ones.
 */
#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int EMBED_THREADS = 256;
constexpr int EMBED_COLS = 8 * EMBED_THREADS; /* of a block */

template <bool WIDE>
__global__ __launch_bounds__(EMBED_THREADS) void embed_kernel(float *hidden, const bf16 *table,
                                                              const int32_t *tokens, int H) {
    int t = blockIdx.x, first = blockIdx.y * EMBED_COLS;
    const bf16 *row = table + (int64_t)tokens[t] * H;
    float *out = hidden + (int64_t)t * H;
    if (WIDE) {
        int c = first + 8 * threadIdx.x;
        if (c < H) {
            float v[8];
            unpack_bf16(v, *(const uint4 *)(row + c));
            *(float4 *)(out + c) = make_float4(v[0], v[1], v[2], v[3]);
            *(float4 *)(out + c + 4) = make_float4(v[4], v[5], v[6], v[7]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int c = first + i * EMBED_THREADS + threadIdx.x;
            if (c < H)
                out[c] = bf16_float(row[c]);
        }
    }
}

void embed_launch(float *hidden, const bf16 *table, const int32_t *tokens, int32_t num_tokens,
                  int32_t hidden_size, cudaStream_t stream) {
    if (num_tokens == 0)
        return;
    dim3 grid(num_tokens, ceil_div(hidden_size, EMBED_COLS));
    if (hidden_size % 8 == 0 && (uintptr_t)table % 16 == 0)
        embed_kernel<true><<<grid, EMBED_THREADS, 0, stream>>>(hidden, table, tokens, hidden_size);
    else
        embed_kernel<false><<<grid, EMBED_THREADS, 0, stream>>>(hidden, table, tokens, hidden_size);
    LAUNCH_CHECK();
}
