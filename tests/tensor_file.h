/* tensor_file: writes small safetensors files for tests, right or wrong as the test asks.
 *
 * Shapes, dtypes and offsets are taken as given, nothing is checked: that is what the tests are
 * for. Files go to folders below shim_scratch_dir().
 */
#pragma once

#include "host/buffer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tensor_file {
    struct buffer header, data; /* header without its braces; start zeroed */
};

/* Adds a tensor whose data (zeros when NULL) follows that of the one before. shape: "2, 3". */
void tensor_file_add(struct tensor_file *f, const char *name, const char *dtype, const char *shape,
                     const void *data, size_t bytes);
/* Appends the file's bytes to out and empties f. */
void tensor_file_finish(struct tensor_file *f, struct buffer *out);
/* Writes the file and empties f. */
void tensor_file_write(struct tensor_file *f, const char *path);
/* A file of this header text and data_bytes zeros, appended to out. */
void tensor_file_from_header(const char *header, size_t data_bytes, struct buffer *out);

void write_file(const char *path, const void *data, size_t len);
/* Makes the folder <scratch>/<name> if need be; returns its path, valid to the end of the run. */
const char *scratch_folder(const char *name);
/* "dir/name", valid until the next 8 calls. */
const char *in_folder(const char *dir, const char *name);

#ifdef __cplusplus
}
#endif
