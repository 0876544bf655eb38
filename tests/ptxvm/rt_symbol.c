/* Variables of modules (__device__, __constant__): each device has its own copy. */
#include "tests/ptxvm/rt.h"

cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) {
    RT_ENTER();
    size_t bytes;
    if (!p)
        return rt_return(cudaErrorInvalidValue);
    return rt_return(symbol_address(symbol, rt_thread.device, p, &bytes));
}

cudaError_t cudaGetSymbolSize(size_t *bytes, const void *symbol) {
    RT_ENTER();
    void *p;
    if (!bytes)
        return rt_return(cudaErrorInvalidValue);
    return rt_return(symbol_address(symbol, rt_thread.device, &p, bytes));
}

/* [offset, offset + bytes) of a variable on the current device. */
static cudaError_t part(const void *symbol, size_t bytes, size_t offset, void **p) {
    size_t total = 0;
    cudaError_t e = symbol_address(symbol, rt_thread.device, p, &total);
    if (e == cudaSuccess && (offset > total || bytes > total - offset))
        e = cudaErrorInvalidValue;
    if (e == cudaSuccess)
        *p = (char *)*p + offset;
    return e;
}

static cudaError_t copy_to(const char *call, const void *symbol, const void *src, size_t bytes,
                           size_t offset, enum cudaMemcpyKind kind, cudaStream_t stream,
                           bool async) {
    RT_ENTER();
    void *p;
    if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToDevice &&
        kind != cudaMemcpyDefault)
        return rt_return(cudaErrorInvalidMemcpyDirection);
    cudaError_t e = part(symbol, bytes, offset, &p);
    return e != cudaSuccess ? rt_return(e) : copy_submit(call, p, src, bytes, kind, stream, async);
}

static cudaError_t copy_from(const char *call, void *dst, const void *symbol, size_t bytes,
                             size_t offset, enum cudaMemcpyKind kind, cudaStream_t stream,
                             bool async) {
    RT_ENTER();
    void *p;
    if (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice &&
        kind != cudaMemcpyDefault)
        return rt_return(cudaErrorInvalidMemcpyDirection);
    cudaError_t e = part(symbol, bytes, offset, &p);
    return e != cudaSuccess ? rt_return(e) : copy_submit(call, dst, p, bytes, kind, stream, async);
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *src, size_t bytes, size_t offset,
                               enum cudaMemcpyKind kind) {
    return copy_to("cudaMemcpyToSymbol", symbol, src, bytes, offset, kind, NULL, false);
}

cudaError_t cudaMemcpyToSymbolAsync(const void *symbol, const void *src, size_t bytes,
                                    size_t offset, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy_to("cudaMemcpyToSymbolAsync", symbol, src, bytes, offset, kind, stream, true);
}

cudaError_t cudaMemcpyFromSymbol(void *dst, const void *symbol, size_t bytes, size_t offset,
                                 enum cudaMemcpyKind kind) {
    return copy_from("cudaMemcpyFromSymbol", dst, symbol, bytes, offset, kind, NULL, false);
}

cudaError_t cudaMemcpyFromSymbolAsync(void *dst, const void *symbol, size_t bytes, size_t offset,
                                      enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy_from("cudaMemcpyFromSymbolAsync", dst, symbol, bytes, offset, kind, stream, true);
}
