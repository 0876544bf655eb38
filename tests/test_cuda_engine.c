/* The engine on a GPU with --batch-invariant: the same bytes for a request whatever happens around
 * it, as on the CPU. */
#include <string.h>

#include "tests/gpu_fixture.h"
#include "tests/invariance.h"
#include "tests/shim.h"

static void gpu_options(struct engine_options *o) {
    fixture_options(o);
    o->device = "cuda";
    o->gpus[0] = 0;
    o->num_gpus = 1;
    o->batch_invariant = true;
}

static struct invariance on_gpu(void) {
    return (struct invariance){.options = gpu_options, .company = 3, .length = 16};
}

TEST(CudaEngine, SameBytesWhateverTheCompanyAndChunking) {
    GPU_OR_SKIP();
    struct invariance v = on_gpu();
    struct engine_options o;
    ASSERT_TRUE(invariance_open(&v));
    gpu_options(&o);
    invariance_check(&v, &o, "default options");
    o.enforce_eager = true;
    invariance_check(&v, &o, "eager");
    invariance_check_chunks(&v);
}

TEST(CudaEngine, SameBytesOnAPrefixHit) {
    GPU_OR_SKIP();
    struct invariance v = on_gpu();
    ASSERT_TRUE(invariance_open(&v));
    invariance_check_prefix_hit(&v);
}

TEST(CudaEngine, SameBytesAfterPreemption) {
    GPU_OR_SKIP();
    struct invariance v = on_gpu();
    v.length = 32; /* so that the cache fills up */
    ASSERT_TRUE(invariance_open(&v));
    invariance_check_preemption(&v);
}
