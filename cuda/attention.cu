/* attention: softmax(scale * q k^T, causal and windowed) v over the paged context.
 *
 * Rows that share keys are cut into tiles by attention_plan.c: tiles of sequences with few new rows
 * go to attention_decode.cu, the others to attention_prefill.cu. attention_tile.cuh says what both
 * compute.
 */
#include "cuda/attention_tile.cuh"
#include "cuda/cuda_check.h"

void attention_launch(const struct attention_launch_args *a, cudaStream_t stream) {
    const struct attention_plan *plan = &a->plan;
    if (plan->num_decode_tiles + plan->num_prefill_tiles == 0 || a->num_kv_heads == 0 ||
        a->num_heads == 0)
        return;
    CHECK(a->head_dim > 0 && a->head_dim % 2 == 0 && a->head_dim <= 256, "head_dim %d",
          a->head_dim);
    CHECK(a->ld % 2 == 0, "rows of qkv are %lld elements apart", (long long)a->ld);
    CHECK(a->scale > 0, "scale %g", (double)a->scale);
    CHECK((uintptr_t)a->kv.data % 16 == 0, "KV blocks at %p", a->kv.data);
    CHECK(a->kv.dtype == DTYPE_BF16 || a->kv.dtype == DTYPE_F16 || a->kv.dtype == DTYPE_F8_E4M3,
          "KV of %s", dtype_name(a->kv.dtype));
    if (plan->num_decode_tiles > 0)
        attention_decode_launch(a, stream);
    if (plan->num_prefill_tiles > 0)
        attention_prefill_launch(a, stream);
}
