#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"

/* Opens a regular file for reading; *size is its size. Returns the descriptor or an ERR_ code. */
static int open_regular(const char *path, size_t *size, struct error *error) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang */
    if (fd < 0)
        return error_set(error, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %s", path,
                         strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return error_set(error, ERR_IO, "%s: not a regular file", path);
    }
    *size = (size_t)st.st_size;
    return fd;
}

int file_map_open(struct file_map *m, const char *path, struct error *error) {
    size_t size;
    memset(m, 0, sizeof *m);
    int fd = open_regular(path, &size, error);
    if (fd < 0)
        return fd;
    if (size > 0) {
        void *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            int e = errno;
            close(fd);
            return error_set(error, ERR_IO, "%s: cannot map %zu bytes: %s", path, size,
                             strerror(e));
        }
        m->data = p;
        m->size = size;
    }
    close(fd);
    return 0;
}

void file_map_close(struct file_map *m) {
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->size);
    memset(m, 0, sizeof *m);
}

static void advise(const struct file_map *m, size_t offset, size_t len, int advice) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t start = offset / page * page;
    if (m->data && offset < m->size)
        madvise((void *)(uintptr_t)(m->data + start), len + (offset - start), advice);
}

void file_map_will_need(const struct file_map *m, size_t offset, size_t len) {
    advise(m, offset, len, MADV_WILLNEED);
}

void file_map_drop(const struct file_map *m, size_t offset, size_t len) {
    advise(m, offset, len, MADV_DONTNEED);
}

int file_read(const char *path, size_t max_bytes, char **out, size_t *len, struct error *error) {
    size_t size, got = 0;
    *out = NULL;
    *len = 0;
    int fd = open_regular(path, &size, error);
    if (fd < 0)
        return fd;
    if (size > max_bytes) {
        close(fd);
        return error_set(error, ERR_BAD_FILE, "%s: %zu bytes, more than the limit of %zu", path,
                         size, max_bytes);
    }
    char *data = xmalloc(size + 1);
    while (got < size) {
        ssize_t n = read(fd, data + got, size - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    close(fd);
    if (got != size) {
        free(data);
        return error_set(error, ERR_IO, "%s: read %zu of %zu bytes", path, got, size);
    }
    data[size] = 0;
    *out = data;
    *len = size;
    return 0;
}

bool file_exists(const char *path) {
    return access(path, R_OK) == 0;
}

char *path_join(const char *dir, const char *name) {
    size_t n = strlen(dir), m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    char *out = xmalloc(n + m + 2);
    memcpy(out, dir, n);
    if (slash)
        out[n++] = '/';
    memcpy(out + n, name, m + 1);
    return out;
}
