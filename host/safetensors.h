/* safetensors: the tensors of one file, mapped read-only, every number checked before use.
 *
 * Format: u64 little-endian header length, a JSON object {name: {dtype, shape, data_offsets}},
 * then the data. As the reference reader does we require header <= 100,000,000 bytes, offsets that
 * start at 0, touch without gaps or overlap and end at the end of the file, and bytes == product of
 * shape x dtype (computed without overflow). https://github.com/huggingface/safetensors
 *
 * The header is read by a parser of its own: it knows just this one shape of JSON, so it neither
 * recurses nor builds a document, and its memory is bounded by the header's real length. Stricter
 * than the reference: an unknown key, a name that stands twice, a control character in a name, or
 * more than TENSOR_MAX_DIMS dimensions is an error. Immutable once open; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/dtype.h"
#include "host/error.h"
#include "host/file.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TENSOR_MAX_DIMS = 4, SAFETENSORS_MAX_TENSORS = 1 << 18 };

/* A tensor inside a mapped file; all pointers borrowed from the file. */
struct tensor_view {
    const char *name; /* UTF-8 without control characters */
    const void *data; /* not necessarily aligned to the element */
    int64_t shape[TENSOR_MAX_DIMS];
    int32_t ndim;     /* 0 for a scalar */
    enum dtype dtype; /* DTYPE_NONE: a type that we do not read (I64, BOOL, ...) */
    char dtype_text[16];
    size_t bytes;
    const char *path; /* the file, for messages */
};

struct safetensors; /* opaque */

/* The first problem is reported, with file and tensor or the byte of the header. ERR_NOT_FOUND,
 * ERR_IO, ERR_BAD_FILE, ERR_UNSUPPORTED (a dtype or number of dimensions that we do not know). On
 * failure *out is NULL. */
int safetensors_open(const char *path, struct safetensors **out, struct error *error);
/* The same over bytes in memory (tests, fuzzing); the bytes are borrowed. */
int safetensors_open_memory(const void *data, size_t size, const char *where,
                            struct safetensors **out, struct error *error);
void safetensors_close(struct safetensors *s); /* NULL is fine */

/* The tensors, sorted by name. find returns NULL when there is no such tensor. */
size_t safetensors_count(const struct safetensors *s);
const struct tensor_view *safetensors_at(const struct safetensors *s, size_t i);
const struct tensor_view *safetensors_find(const struct safetensors *s, const char *name);
size_t safetensors_bytes(const struct safetensors *s); /* of the file */

#ifdef __cplusplus
}
#endif
