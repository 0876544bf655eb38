/* cuda_create: devices, the backend object and its memory, and the op table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_backend.h"
#include "host/sampling.h"

enum { MIN_SM = 80, WORKSPACE_CONTEXT = 128 * 1024 };

/* ---- devices --------------------------------------------------------------------------------- */

static int device_attribute(int32_t device, enum cudaDeviceAttr attribute) {
    int value = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
}

static int32_t device_sm(int32_t device) {
    return 10 * device_attribute(device, cudaDevAttrComputeCapabilityMajor) +
           device_attribute(device, cudaDevAttrComputeCapabilityMinor);
}

static struct gpu_info device_info(int32_t device) {
    return (struct gpu_info){
        .sm = device_sm(device),
        .num_sms = device_attribute(device, cudaDevAttrMultiProcessorCount),
        .shared_per_block = device_attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin),
        .l2_bytes = device_attribute(device, cudaDevAttrL2CacheSize),
    };
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void *cuda_alloc(struct backend *b, size_t bytes) {
    void *p = NULL;
    if (bytes == 0)
        bytes = 1;
    CUDA_CHECK(cudaSetDevice(b->device));
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError(); /* it is not an error of what follows */
        return NULL;
    }
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, b->stream));
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
    return p;
}

/* Waits for all work of the device, which may use the memory. */
static void cuda_free(struct backend *b, void *p, size_t bytes) {
    (void)bytes;
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaFree(p));
}

static void cuda_write(struct backend *b, void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, b->stream));
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
}

static int64_t cuda_free_bytes(struct backend *b) {
    size_t free_bytes = 0, total = 0;
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    return (int64_t)free_bytes;
}

static int64_t cuda_device_budget(int32_t device, float memory_utilization) {
    size_t free_bytes = 0, total = 0;
    CUDA_CHECK(cudaSetDevice(device));
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    int64_t may_use = (int64_t)((double)total * (double)memory_utilization);
    int64_t left = may_use - (int64_t)(total - free_bytes);
    return left > 0 ? left : 0;
}

static int64_t cuda_kv_budget(struct backend *b) {
    return cuda_device_budget(b->device, b->config.memory_utilization);
}

/* ---- create ---------------------------------------------------------------------------------- */

struct carver {
    char *memory;
    size_t used;
};

static void *carve(struct carver *c, size_t count, size_t size) {
    void *p = c->memory ? c->memory + c->used : NULL;
    c->used += (count * size + 255) / 256 * 256;
    return p;
}

static void carve_f8(struct backend *b, struct carver *k) {
    const struct backend_config *c = &b->config;
    size_t T = (size_t)c->max_tokens, R = (size_t)c->max_logits;
    size_t P = T * (size_t)c->num_experts_per_tok, rows = T > R ? T : R;
    b->xq = carve(k, rows, (size_t)f8_stride(c->hidden_size));
    b->xq_scale = carve(k, rows, sizeof(float));
    b->inputq = carve(k, T, (size_t)f8_stride(c->max_matmul_cols));
    b->inputq_scale = carve(k, T, sizeof(float));
    b->actq = carve(k, P, (size_t)f8_stride(c->max_intermediate));
    b->actq_scale = carve(k, P, sizeof(float));
}

/* Lays the scratch memory out; returns its size. */
static size_t carve_scratch(struct backend *b, char *memory) {
    const struct backend_config *c = &b->config;
    struct carver k = {.memory = memory};
    size_t T = (size_t)c->max_tokens, K = (size_t)c->num_experts_per_tok, P = T * K;
    size_t E = (size_t)c->num_experts, H = (size_t)c->hidden_size, i4 = sizeof(int32_t);
    b->head_offsets = carve(&k, (size_t)c->num_kv_heads + 1, i4);
    b->slot = carve(&k, P, i4);
    b->router_logits = carve(&k, T * E, sizeof(float));
    b->to_one = (struct gpu_routing){
        .topk_ids = carve(&k, T, i4),
        .topk_weights = carve(&k, T, sizeof(float)),
        .expert_counts = carve(&k, 1, i4),
        .expert_offsets = carve(&k, 2, i4),
        .permutation = carve(&k, T, i4),
        .slot = carve(&k, T, i4),
    };
    b->act = carve(&k, P * (size_t)c->max_intermediate, sizeof(bf16));
    b->pair_out = carve(&k, P * H, c->batch_invariant ? sizeof(double) : sizeof(float));
    if (c->fp8_activations)
        carve_f8(b, &k);
    b->moe_workspace =
        carve(&k, 1, moe_workspace_bytes(c->max_tokens, c->num_experts, c->num_experts_per_tok));
    b->attention_workspace =
        carve(&k, 1, attention_workspace_bytes(b->max_splits, c->num_kv_heads, c->head_dim));
    b->sample_workspace = carve(&k, 1, sample_workspace_bytes(c->max_logits, c->vocab_size));
    b->gemm_workspace = carve(&k, 1, GEMM_WORKSPACE_BYTES);
    struct step_arrays arrays;
    b->arrays.device = carve(&k, 1, cuda_step_arrays(c, b->max_group, NULL, &arrays));
    return k.used;
}

/* Query heads by KV head; they are contiguous, as kv_head ascends. */
static void group_heads(struct backend *b, const int32_t *kv_head, int32_t *offsets) {
    const struct backend_config *c = &b->config;
    int32_t at = 0;
    b->max_group = 1;
    for (int32_t kv = 0; kv < c->num_kv_heads; kv++) {
        offsets[kv] = at;
        while (at < c->num_heads && kv_head[at] == kv)
            at++;
        if (at - offsets[kv] > b->max_group)
            b->max_group = at - offsets[kv];
    }
    offsets[c->num_kv_heads] = at;
    CHECK(at == c->num_heads, "query head %d does not read the next KV head", at);
}

static cudaError_t create_stages(struct backend *b) {
    cudaError_t rc = cudaSuccess;
    for (int i = 0; i < NUM_STAGES && rc == cudaSuccess; i++) {
        struct stage *s = &b->stages[i];
        size_t bytes = STAGE_BYTES + STAGE_SCALES * sizeof(float);
        rc = cudaHostAlloc((void **)&s->memory, bytes, cudaHostAllocMapped);
        if (rc == cudaSuccess)
            rc = cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming);
    }
    return rc;
}

static cudaError_t alloc_mapped(void *out, size_t count, size_t size) {
    return cudaHostAlloc((void **)out, (count ? count : 1) * size, cudaHostAllocMapped);
}

static cudaError_t create_pinned(struct backend *b) {
    const struct backend_config *c = &b->config;
    size_t R = (size_t)c->max_logits;
    char *arrays = NULL;
    b->max_sample_counts =
        c->max_model_len > MAX_SAMPLE_COUNTS ? c->max_model_len : MAX_SAMPLE_COUNTS;
    cudaError_t rc = alloc_mapped(&arrays, 1, b->arrays.bytes);
    char *device = b->arrays.device;
    cuda_step_arrays(c, b->max_group, arrays, &b->arrays);
    b->arrays.device = device;
    if (rc == cudaSuccess)
        rc = alloc_mapped(&b->sample_rows, R, sizeof *b->sample_rows);
    if (rc == cudaSuccess)
        rc = alloc_mapped(&b->sample_results, R, sizeof *b->sample_results);
    if (rc == cudaSuccess)
        rc = alloc_mapped(&b->sample_banned, R * MAX_BANNED, sizeof *b->sample_banned);
    if (rc == cudaSuccess)
        rc = alloc_mapped(&b->sample_biases, R * MAX_LOGIT_BIASES, sizeof *b->sample_biases);
    if (rc == cudaSuccess)
        rc = alloc_mapped(&b->sample_masks, R * sample_mask_words(c->vocab_size),
                          sizeof *b->sample_masks);
    if (rc == cudaSuccess)
        rc =
            alloc_mapped(&b->sample_counts, (size_t)b->max_sample_counts, sizeof *b->sample_counts);
    return rc;
}

static cudaError_t create_streams(struct backend *b) {
    cuda_peeker_init(&b->peeker);
    pthread_mutex_init(&b->stages_lock, NULL);
    pthread_cond_init(&b->stage_free, NULL);
    cudaError_t rc = cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking);
    if (rc == cudaSuccess)
        rc = cudaStreamCreateWithFlags(&b->upload, cudaStreamNonBlocking);
    if (rc == cudaSuccess)
        rc = cudaEventCreateWithFlags(&b->arrays_read, cudaEventDisableTiming);
    return rc;
}

static void describe(struct backend *b) {
    struct cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, b->device));
    snprintf(b->description, sizeof b->description, "GPU %d, %.100s, sm_%d, %d SMs, %.1f GB%s%s",
             b->device, p.name, b->gpu.sm, b->gpu.num_sms, (double)p.totalGlobalMem / 1e9,
             b->config.batch_invariant ? ", batch-invariant" : "",
             b->config.enforce_eager ? ", eager" : ", CUDA graphs");
}

static void cuda_destroy(struct backend *b) {
    if (!b)
        return;
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaDeviceSynchronize());
    cuda_drop_recorded(b);
    comm_destroy(b->comm);
    gemm_destroy(b->gemm);
    for (int i = 0; i < NUM_STAGES; i++) {
        cudaFreeHost(b->stages[i].memory);
        if (b->stages[i].done)
            cudaEventDestroy(b->stages[i].done);
    }
    for (int32_t i = 0; i < b->num_tables; i++)
        cudaFree(b->tables[i]);
    for (int32_t i = 0; i < b->num_expert_tables; i++)
        free(b->expert_tables[i]);
    if (!b->config.embedding_on_host)
        cudaFree(b->embedding);
    else if (!b->embedding_lent)
        cudaFreeHost(b->embedding);
    cudaFree(b->scratch);
    cudaFreeHost(b->arrays.host);
    cudaFreeHost(b->sample_rows);
    cudaFreeHost(b->sample_results);
    cudaFreeHost(b->sample_counts);
    cudaFreeHost(b->sample_banned);
    cudaFreeHost(b->sample_biases);
    cudaFreeHost(b->sample_masks);
    if (b->arrays_read)
        cudaEventDestroy(b->arrays_read);
    if (b->upload)
        cudaStreamDestroy(b->upload);
    if (b->stream)
        cudaStreamDestroy(b->stream);
    cuda_peeker_deinit(&b->peeker);
    pthread_mutex_destroy(&b->stages_lock);
    pthread_cond_destroy(&b->stage_free);
    free(b->tables);
    free(b->expert_tables);
    free(b);
}

/* What the kernels are written for (kernels.h). */
static int check_config(const struct backend_config *c, struct error *error) {
    const struct {
        const char *name, *wanted;
        int32_t is;
        bool fine;
    } sizes[] = {
        {"head_dim", "even, at most 256", c->head_dim, c->head_dim % 2 == 0 && c->head_dim <= 256},
        {"the number of experts", "at most 1024", c->num_experts, c->num_experts <= 1024},
        {"experts per token", "at most 32", c->num_experts_per_tok, c->num_experts_per_tok <= 32},
        {"hidden_size", "at most 16384, or 24576 as a multiple of 4", c->hidden_size,
         c->hidden_size <= 16384 || (c->hidden_size <= 24576 && c->hidden_size % 4 == 0)},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!sizes[i].fine)
            return error_set(error, ERR_UNSUPPORTED,
                             "--device cuda: %s is %d in this model, the kernels take %s; --gpus 0 "
                             "serves it on the CPU",
                             sizes[i].name, sizes[i].is, sizes[i].wanted);
    int32_t sm = device_sm(c->device);
    if (c->fp8_activations && sm < MIN_F8_SM)
        return error_set(
            error, ERR_UNSUPPORTED,
            "--activation-dtype fp8: GPU %d has compute capability %d.%d, and tensor "
            "cores take FP8 from %d.%d on; with bf16 activations it serves FP8 weights "
            "too",
            c->device, sm / 10, sm % 10, MIN_F8_SM / 10, MIN_F8_SM % 10);
    return 0;
}

/* Makes the device the thread's, which is when its memory is first taken, and looks whether the
 * program has kernels for it. */
static int open_device(const struct backend_config *c, struct error *error) {
    int32_t sm = device_sm(c->device), arch = 0;
    cudaError_t rc = cudaSetDevice(c->device);
    if (rc == cudaSuccess)
        rc = kernels_arch(&arch);
    if (rc == cudaErrorNoKernelImageForDevice || rc == cudaErrorInvalidDeviceFunction)
        return error_set(error, ERR_UNSUPPORTED,
                         "GPU %d has compute capability %d.%d, and this program was built without "
                         "kernels for it; build it with make ARCHS=%d",
                         c->device, sm / 10, sm % 10, sm);
    if (rc != cudaSuccess)
        return error_set(
            error, rc == cudaErrorMemoryAllocation ? ERR_NO_MEMORY : ERR_UNSUPPORTED,
            "GPU %d cannot be used: %s (%s); another process may hold it or its memory "
            "(nvidia-smi shows them)",
            c->device, cudaGetErrorString(rc), cudaGetErrorName(rc));
    if (c->fp8_activations && arch < MIN_F8_SM)
        return error_set(error, ERR_UNSUPPORTED,
                         "--activation-dtype fp8: GPU %d has compute capability %d.%d, and this "
                         "program was built for %d.%d, which has no FP8 products; build it with "
                         "make ARCHS=%d",
                         c->device, sm / 10, sm % 10, arch / 10, arch % 10, sm);
    return 0;
}

/* rc: of what was tried last; cudaSuccess: of cuBLASLt. */
static int no_memory(struct backend *b, size_t scratch, cudaError_t rc, struct error *error) {
    size_t pinned = NUM_STAGES * (STAGE_BYTES + STAGE_SCALES * sizeof(float)) + b->arrays.bytes;
    int64_t left = cuda_free_bytes(b), missing = (int64_t)scratch - left;
    if (!b->scratch)
        return error_set(
            error, ERR_NO_MEMORY,
            "GPU %d: no memory for %zu bytes (%.2f GB) of scratch: %lld are free, %lld too "
            "few (%s); lower --max-num-batched-tokens or --max-num-seqs",
            b->device, scratch, (double)scratch / 1e9, (long long)left,
            (long long)(missing > 0 ? missing : 0), cudaGetErrorString(rc));
    if (rc == cudaSuccess)
        return error_set(
            error, ERR_NO_MEMORY,
            "GPU %d: cuBLASLt does not start, and of memory %lld bytes are free; lower "
            "--max-num-batched-tokens or --max-num-seqs",
            b->device, (long long)left);
    return error_set(error, ERR_NO_MEMORY,
                     "GPU %d: no pinned host memory for buffers of about %.2f GB (%s); free host "
                     "memory, raise the limit of locked memory (ulimit -l), or lower "
                     "--max-num-batched-tokens",
                     b->device, (double)pinned / 1e9, cudaGetErrorString(rc));
}

static int cuda_create(const struct backend_config *config, struct backend **out,
                       struct error *error) {
    int checked = check_config(config, error);
    if (checked == 0)
        checked = open_device(config, error);
    if (checked != 0) {
        cudaGetLastError(); /* it is not an error of what follows */
        return checked;
    }
    struct backend *b = xcalloc(1, sizeof *b);
    int32_t *offsets = xcalloc((size_t)config->num_kv_heads + 1, sizeof *offsets);
    b->config = *config;
    b->config.kv_head = NULL;
    b->device = config->device;
    b->gpu = device_info(b->device);
    group_heads(b, config->kv_head, offsets);
    int64_t context = (int64_t)config->max_seqs * config->max_model_len;
    b->max_splits = attention_max_splits(config->max_seqs,
                                         context < WORKSPACE_CONTEXT ? context : WORKSPACE_CONTEXT);
    describe(b);
    struct step_arrays counted;
    b->arrays.bytes = cuda_step_arrays(config, b->max_group, NULL, &counted);
    size_t bytes = carve_scratch(b, NULL);
    cudaError_t rc = create_streams(b);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&b->scratch, bytes);
    if (rc == cudaSuccess) {
        carve_scratch(b, b->scratch);
        rc = create_stages(b);
    }
    if (rc == cudaSuccess)
        rc = create_pinned(b);
    if (rc == cudaSuccess)
        b->gemm = gemm_create(b->gemm_workspace);
    if (!b->gemm) {
        cudaGetLastError(); /* it is not an error of what follows */
        no_memory(b, bytes, rc, error);
        cuda_destroy(b);
        free(offsets);
        return ERR_NO_MEMORY;
    }
    CUDA_CHECK(cudaMemsetAsync(b->scratch, 0, bytes, b->stream));
    cuda_write(b, b->head_offsets, offsets, ((size_t)config->num_kv_heads + 1) * sizeof *offsets);
    free(offsets);
    *out = b;
    return 0;
}

/* ---- the table ------------------------------------------------------------------------------- */

static const char *cuda_describe(struct backend *b) {
    return b->description;
}

/* Partials are float32, or with batch_invariant sums in float64 (units.cuh). block_cut: groups of
 * rows with one scale are half of it. */
static int create_plain(const struct backend_config *config, struct backend **out,
                        struct error *error) {
    CHECK(!config->batch_invariant, "the table is that without batch_invariant");
    return cuda_create(config, out, error);
}

static int create_invariant(const struct backend_config *config, struct backend **out,
                            struct error *error) {
    CHECK(config->batch_invariant, "the table is that with batch_invariant");
    return cuda_create(config, out, error);
}

#define CUDA_TABLE(create_fn, partial)                                                             \
    {                                                                                              \
        .name = "cuda", .create = create_fn, .partial_bytes = sizeof(partial),                     \
        .kv_dtype = DTYPE_BF16, .act_bytes = sizeof(bf16), .block_cut = FRAGMENT_COLS,             \
        .destroy = cuda_destroy, .connect = cuda_connect, .abort = cuda_abort,                     \
        .recover = cuda_recover, .alloc = cuda_alloc, .free = cuda_free, .write = cuda_write,      \
        .free_bytes = cuda_free_bytes, .kv_budget = cuda_kv_budget, .peek = cuda_peek,             \
        .memory_bandwidth = cuda_memory_bandwidth, .device_budget = cuda_device_budget,            \
        .weight_bytes = cuda_weight_bytes, .weight_init = cuda_weight_init,                        \
        .weight_put = cuda_weight_put, .experts_init = cuda_experts_init,                          \
        .embed_init = cuda_embed_init, .kv_block_bytes = gpu_kv_block_bytes,                       \
        .begin_step = cuda_begin_step, .end_step = cuda_end_step, .embed = cuda_embed,             \
        .add_norm = cuda_add_norm, .gather_rows = cuda_gather_rows,                                \
        .gather_logits = cuda_gather_logits, .matmul = cuda_matmul, .logits = cuda_logits,         \
        .matmul_partial = cuda_matmul_partial, .qk_sum_squares = cuda_qk_sum_squares,              \
        .qk_rope_kv_write = cuda_qk_rope_kv_write, .attention = cuda_attention,                    \
        .router = cuda_router, .moe = cuda_moe, .sample = cuda_sample, .describe = cuda_describe,  \
        .describe_ranks = cuda_describe_ranks,                                                     \
    }

static const struct ops table = CUDA_TABLE(create_plain, float);
static const struct ops invariant_table = CUDA_TABLE(create_invariant, double);

const struct ops *cuda_ops(const int32_t *devices, int32_t num_devices, bool batch_invariant,
                           struct error *error) {
    int count = 0;
    /* Ranks wait for each other in kernels, while which no code can be loaded: all of it comes
     * first. */
    if (num_devices > 1)
        setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    cudaError_t rc = cudaGetDeviceCount(&count);
    if (rc != cudaSuccess) {
        error_set(error, ERR_UNSUPPORTED, "GPUs: %s (%s); --gpus 0 serves on the CPU",
                  cudaGetErrorString(rc), cudaGetErrorName(rc));
        return NULL;
    }
    for (int32_t i = 0; i < num_devices; i++) {
        if (devices[i] >= count) {
            error_set(error, ERR_UNSUPPORTED, "--gpus: there is no GPU %d, the machine has %d",
                      devices[i], count);
            return NULL;
        }
        if (device_sm(devices[i]) < MIN_SM) {
            error_set(error, ERR_UNSUPPORTED,
                      "--gpus: GPU %d has compute capability %d.%d, moeserve needs %d.%d or newer",
                      devices[i], device_sm(devices[i]) / 10, device_sm(devices[i]) % 10,
                      MIN_SM / 10, MIN_SM % 10);
            return NULL;
        }
    }
    return batch_invariant ? &invariant_table : &table;
}
