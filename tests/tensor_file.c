#include "tests/tensor_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "host/error.h"
#include "tests/shim.h"

void tensor_file_add(struct tensor_file *f, const char *name, const char *dtype, const char *shape,
                     const void *data, size_t bytes) {
    if (f->header.len)
        buffer_putc(&f->header, ',');
    buffer_printf(&f->header, "\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                  name, dtype, shape, f->data.len, f->data.len + bytes);
    buffer_reserve(&f->data, bytes);
    for (size_t i = 0; i < bytes; i++)
        buffer_putc(&f->data, data ? ((const char *)data)[i] : 0);
}

static void put_length(struct buffer *out, size_t n) {
    for (int i = 0; i < 8; i++)
        buffer_putc(out, (char)(n >> 8 * i));
}

void tensor_file_finish(struct tensor_file *f, struct buffer *out) {
    put_length(out, f->header.len + 2);
    buffer_putc(out, '{');
    buffer_append(out, f->header.data, f->header.len);
    buffer_putc(out, '}');
    buffer_append(out, f->data.data, f->data.len);
    buffer_deinit(&f->header);
    buffer_deinit(&f->data);
}

void tensor_file_write(struct tensor_file *f, const char *path) {
    struct buffer out = {0};
    tensor_file_finish(f, &out);
    write_file(path, out.data, out.len);
    buffer_deinit(&out);
}

void tensor_file_from_header(const char *header, size_t data_bytes, struct buffer *out) {
    put_length(out, strlen(header));
    buffer_puts(out, header);
    while (data_bytes-- > 0)
        buffer_putc(out, 0);
}

void write_file(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    CHECK(f, "%s: %s", path, strerror(errno));
    size_t n = len ? fwrite(data, 1, len, f) : 0;
    CHECK(n == len && fclose(f) == 0, "%s: wrote %zu of %zu bytes", path, n, len);
}

const char *in_folder(const char *dir, const char *name) {
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

const char *scratch_folder(const char *name) {
    static char folders[64][256];
    char path[256];
    int i = 0;
    snprintf(path, sizeof path, "%s/%s", shim_scratch_dir(), name);
    while (i < 64 && folders[i][0] && strcmp(folders[i], path) != 0)
        i++;
    CHECK(i < 64, "more than 64 scratch folders");
    if (!folders[i][0]) {
        CHECK(mkdir(path, 0777) == 0, "%s: %s", path, strerror(errno));
        strcpy(folders[i], path);
    }
    return folders[i];
}
