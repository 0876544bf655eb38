/* nccl_none: stands in for nccl.c in builds without NCCL's header. Nothing but nccl_open and
 * nccl_version is reached: without an opened library there is no group to join. */
#include "cuda/nccl.h"

int nccl_open(struct error *error) {
    return error_set(error, ERR_UNSUPPORTED,
                     "this build has no NCCL: nccl.h was not there when it was built; install "
                     "libnccl-dev and build again");
}

const char *nccl_version(void) {
    return "";
}

int nccl_new_id(char id[NCCL_ID_BYTES], struct error *error) {
    (void)id;
    return nccl_open(error);
}

int nccl_join(struct nccl **out, int32_t rank, int32_t size, const char id[NCCL_ID_BYTES],
              int64_t timeout_us, struct error *error) {
    (void)out, (void)rank, (void)size, (void)id, (void)timeout_us;
    return nccl_open(error);
}

int nccl_all_reduce(struct nccl *n, void *data, int64_t count, enum nccl_type type,
                    cudaStream_t stream, struct error *error) {
    (void)n, (void)data, (void)count, (void)type, (void)stream;
    return nccl_open(error);
}

int nccl_gather_columns(struct nccl *n, const float *part, int64_t rows, const int32_t *columns,
                        float *gathered, cudaStream_t stream, struct error *error) {
    (void)n, (void)part, (void)rows, (void)columns, (void)gathered, (void)stream;
    return nccl_open(error);
}

int nccl_error(struct nccl *n, struct error *error) {
    (void)n;
    return nccl_open(error);
}

void nccl_abort(struct nccl *n) {
    (void)n;
}

void nccl_leave(struct nccl *n) {
    (void)n;
}
