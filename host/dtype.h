/* dtype: element types of checkpoints and caches, and their scalar conversions.
 *
 * The scalar functions are the specification; the SIMD kernels of host/cpu must agree with them bit
 * for bit.
 */
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_NONE, DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3 };

/* Bytes of one element; 0 for DTYPE_NONE. */
size_t dtype_bytes(enum dtype t);
/* safetensors' spelling: "F32", "F16", "BF16", "F8_E4M3". */
const char *dtype_name(enum dtype t);
/* DTYPE_NONE when unknown. */
enum dtype dtype_parse(const char *name);

static inline float f32_from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bf16_to_f32(uint16_t b) {
    return f32_from_bits((uint32_t)b << 16);
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float f) {
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f16_from_f32(float f); /* round to nearest even, overflow to infinity */

/* E4M3 "fn": no infinity, 0x7f and 0xff are NaN, largest value 448. */
float e4m3_to_f32(uint8_t e);
uint8_t e4m3_from_f32(float f); /* round to nearest even, saturating at +-448; NaN to 0x7f */

/* Element i of an array of type t, as float. The array need not be aligned. */
float dtype_load(enum dtype t, const void *data, int64_t i);
/* Stores f at element i of an array of type t, rounded as above. */
void dtype_store(enum dtype t, void *data, int64_t i, float f);

#ifdef __cplusplus
}
#endif
