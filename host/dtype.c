#include "dtype.h"

static const struct {
    const char *name;
    size_t bytes;
} table[] = {
    [DTYPE_NONE] = {"none", 0}, [DTYPE_F32] = {"F32", 4},         [DTYPE_F16] = {"F16", 2},
    [DTYPE_BF16] = {"BF16", 2}, [DTYPE_F8_E4M3] = {"F8_E4M3", 1},
};

size_t dtype_bytes(enum dtype t) {
    return table[t].bytes;
}

const char *dtype_name(enum dtype t) {
    return table[t].name;
}

enum dtype dtype_parse(const char *name) {
    for (int i = DTYPE_F32; i <= DTYPE_F8_E4M3; i++)
        if (strcmp(table[i].name, name) == 0)
            return (enum dtype)i;
    return DTYPE_NONE;
}

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exp = (h >> 10) & 31, mant = h & 1023;
    if (exp == 31)
        return f32_from_bits(sign | 0x7f800000 | mant << 13);
    if (exp)
        return f32_from_bits(sign | (exp + 112) << 23 | mant << 13);
    float f = (float)mant * 0x1p-24f; /* subnormal or zero */
    return sign ? -f : f;
}

uint16_t f16_from_f32(float f) {
    uint32_t u = f32_bits(f);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return sign | 0x7e00;
    if (u >= 0x477ff000) /* rounds to 65536 or more */
        return sign | 0x7c00;
    if (u < 0x38800000) /* below 2^-14: a multiple of 2^-24 */
        return (uint16_t)(sign | (uint16_t)lrintf(f32_from_bits(u) * 0x1p24f));
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | ((u - 0x38000000) >> 13));
}

float e4m3_to_f32(uint8_t e) {
    uint32_t sign = (uint32_t)(e & 0x80) << 24;
    if ((e & 0x7f) == 0x7f)
        return f32_from_bits(sign | 0x7fc00000);
    /* The seven bits in place of a float's exponent and mantissa, then the bias made up for: exact
     * for subnormals too. */
    float f = f32_from_bits((uint32_t)(e & 0x7f) << 20) * 0x1p120f;
    return f32_from_bits(f32_bits(f) | sign);
}

uint8_t e4m3_from_f32(float f) {
    uint32_t u = f32_bits(f);
    uint8_t sign = (uint8_t)(u >> 24 & 0x80);
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return 0x7f;
    float a = f32_from_bits(u);
    if (a >= 448)
        return sign | 0x7e;
    if (a < 0x1p-6f) /* a multiple of 2^-9 */
        return (uint8_t)(sign | (uint8_t)lrintf(a * 0x1p9f));
    u += 0x7ffff + (u >> 20 & 1);
    uint32_t code = (u - (120u << 23)) >> 20;
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}

/* Checkpoint data need not be aligned to its element, hence memcpy. */
static uint16_t load_u16(const void *data, int64_t i) {
    uint16_t u;
    memcpy(&u, (const char *)data + i * 2, sizeof u);
    return u;
}

static void store_u16(void *data, int64_t i, uint16_t u) {
    memcpy((char *)data + i * 2, &u, sizeof u);
}

float dtype_load(enum dtype t, const void *data, int64_t i) {
    float f = 0;
    switch (t) {
    case DTYPE_F32:
        memcpy(&f, (const char *)data + i * 4, sizeof f);
        return f;
    case DTYPE_F16:
        return f16_to_f32(load_u16(data, i));
    case DTYPE_BF16:
        return bf16_to_f32(load_u16(data, i));
    case DTYPE_F8_E4M3:
        return e4m3_to_f32(((const uint8_t *)data)[i]);
    case DTYPE_NONE:
        break;
    }
    return f;
}

void dtype_store(enum dtype t, void *data, int64_t i, float f) {
    switch (t) {
    case DTYPE_F32:
        memcpy((char *)data + i * 4, &f, sizeof f);
        break;
    case DTYPE_F16:
        store_u16(data, i, f16_from_f32(f));
        break;
    case DTYPE_BF16:
        store_u16(data, i, bf16_from_f32(f));
        break;
    case DTYPE_F8_E4M3:
        ((uint8_t *)data)[i] = e4m3_from_f32(f);
        break;
    case DTYPE_NONE:
        break;
    }
}
