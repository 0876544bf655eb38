/* fatbin: the container in which nvcc puts device code into a program.
 *
 * A header and a row of entries, each a cubin or a PTX text for one architecture. The layout is
 * little-endian and was read off containers that nvcc 13.0 wrote:
 *
 *   container  u32 magic 0xba55ed50, u16 version 1, u16 header bytes, u64 bytes of the entries
 *   entry      u16 kind (1 PTX, 2 cubin), u16, u32 header bytes, u64 payload bytes,
 *              u32 compressed bytes (0: not compressed), u32, u16 minor, u16 major, u32 sm,
 *              u32, u32, u64 flags (0x2000, 0x8000: compressed), u64, u64 uncompressed bytes
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum fatbin_result {
    FATBIN_OK,
    FATBIN_MALFORMED,  /* not such a container, or its sizes contradict each other */
    FATBIN_COMPRESSED, /* the PTX that would be taken was compressed: nvcc --no-compress */
    FATBIN_NO_PTX      /* none that the architecture can run */
};

struct fatbin_ptx {
    const char *text; /* borrowed from the container; ends at len, not at a NUL */
    size_t len;
    int32_t sm;
};

/* The PTX for an architecture (89: sm_89): that of the architecture itself, else of the highest
 * lower one, since PTX runs on later architectures too. PTX for features of one architecture
 * alone (sm_90a) fits only there. Reads no byte past data + bytes; SIZE_MAX: as many as the
 * container says. The reason of a failure is put into error. */
enum fatbin_result fatbin_find_ptx(const void *data, size_t bytes, int32_t sm,
                                   struct fatbin_ptx *out, char *error, size_t error_bytes);
