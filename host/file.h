/* file: whole files mapped read-only or read into memory. Any thread.
 *
 * Errors name the path and the system's reason.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A read-only mapping of a whole file. Start it zeroed; close it in any state. */
struct file_map {
    const char *data; /* NULL when the file is empty */
    size_t size;
};

int file_map_open(struct file_map *m, const char *path, struct error *error);
void file_map_close(struct file_map *m);

/* Tells the kernel that this part of the mapping is wanted soon / no longer wanted. */
void file_map_will_need(const struct file_map *m, size_t offset, size_t len);
void file_map_drop(const struct file_map *m, size_t offset, size_t len);

/* Reads a file of at most max_bytes. *out is NUL-terminated (the NUL is not counted in *len) and
 * owned by the caller (free). */
int file_read(const char *path, size_t max_bytes, char **out, size_t *len, struct error *error);

bool file_exists(const char *path);

/* "dir/name", to be freed. */
char *path_join(const char *dir, const char *name);

#ifdef __cplusplus
}
#endif
