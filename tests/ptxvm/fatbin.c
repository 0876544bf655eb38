#include "tests/ptxvm/fatbin.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum {
    MAGIC_BYTES = 16, /* of the container's header */
    ENTRY_BYTES = 64, /* of an entry's header; options and names may follow */
    KIND_PTX = 1,
    COMPRESSED_FLAGS = 0x2000 | 0x8000
};
static const uint32_t MAGIC = 0xba55ed50;

static uint32_t u16(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(const unsigned char *p) {
    return u16(p) | u16(p + 2) << 16;
}

static uint64_t u64(const unsigned char *p) {
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

struct entry {
    bool is_ptx, compressed;
    int32_t sm;
    const unsigned char *payload;
    size_t bytes;
};

/* Reads the entry at p, of which `left` bytes exist; the bytes it takes, 0 when it does not fit. */
static size_t read_entry(const unsigned char *p, size_t left, struct entry *out) {
    if (left < ENTRY_BYTES)
        return 0;
    size_t header = u32(p + 4);
    uint64_t payload = u64(p + 8);
    if (header < ENTRY_BYTES || header > left || payload > left - header)
        return 0;
    *out = (struct entry){.is_ptx = u16(p) == KIND_PTX,
                          .compressed = u32(p + 16) != 0 || (u64(p + 40) & COMPRESSED_FLAGS),
                          .sm = (int32_t)u32(p + 28),
                          .payload = p + header,
                          .bytes = (size_t)payload};
    return header + (size_t)payload;
}

/* Is it PTX for one architecture only (".target sm_90a")? */
static bool is_specific(const struct entry *e) {
    static const char target[] = ".target sm_";
    size_t len = strnlen((const char *)e->payload, e->bytes);
    const char *at = memmem(e->payload, len, target, sizeof target - 1);
    if (!at)
        return false;
    const char *end = (const char *)e->payload + len;
    at += sizeof target - 1;
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at < end && (*at == 'a' || *at == 'f');
}

static bool is_better(const struct entry *e, const struct entry *best, int32_t sm) {
    if (!e->is_ptx || e->sm > sm || e->sm <= 0)
        return false;
    if (best->payload && e->sm <= best->sm)
        return false;
    return e->sm == sm || e->compressed || !is_specific(e);
}

/* The entry to take; payload NULL when there is none. False when the container is malformed. */
static bool choose(const unsigned char *p, size_t left, int32_t sm, struct entry *best) {
    *best = (struct entry){0};
    while (left) {
        struct entry e;
        size_t taken = read_entry(p, left, &e);
        if (!taken)
            return false;
        if (is_better(&e, best, sm))
            *best = e;
        p += taken;
        left -= taken;
    }
    return true;
}

enum fatbin_result fatbin_find_ptx(const void *data, size_t bytes, int32_t sm,
                                   struct fatbin_ptx *out, char *error, size_t error_bytes) {
    const unsigned char *p = data;
    if (bytes < MAGIC_BYTES || u32(p) != MAGIC || u16(p + 4) != 1) {
        snprintf(error, error_bytes, "not a fat binary of version 1");
        return FATBIN_MALFORMED;
    }
    size_t header = u16(p + 6);
    uint64_t entries = u64(p + 8);
    if (header < MAGIC_BYTES || header > bytes || entries > bytes - header) {
        snprintf(error, error_bytes, "a fat binary of %llu bytes does not fit in %zu",
                 (unsigned long long)entries, bytes);
        return FATBIN_MALFORMED;
    }
    struct entry best;
    if (!choose(p + header, (size_t)entries, sm, &best)) {
        snprintf(error, error_bytes, "an entry of the fat binary does not fit in it");
        return FATBIN_MALFORMED;
    }
    if (!best.payload) {
        snprintf(error, error_bytes,
                 "no PTX that sm_%d can run; build with -gencode "
                 "arch=compute_%d,code=[sm_%d,compute_%d]",
                 sm, sm, sm, sm);
        return FATBIN_NO_PTX;
    }
    if (best.compressed) {
        snprintf(error, error_bytes, "the PTX for sm_%d is compressed; build with --no-compress",
                 best.sm);
        return FATBIN_COMPRESSED;
    }
    *out = (struct fatbin_ptx){(const char *)best.payload,
                               strnlen((const char *)best.payload, best.bytes), best.sm};
    return FATBIN_OK;
}
