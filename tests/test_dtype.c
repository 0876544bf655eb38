/* Conversions of F16, BF16 and F8_E4M3: every code, every rounding boundary. */
#include "host/dtype.h"
#include "tests/shim.h"

/* A small float type, decoded by its definition: sign, exponent, mantissa. */
struct format {
    const char *name;
    int bits, mantissa_bits, bias;
    unsigned largest; /* code of the largest finite value */
    bool infinity;    /* overflow goes to largest + 1 rather than to largest */
};

static const struct format formats[] = {
    {"BF16", 16, 7, 127, 0x7f7f, true},
    {"F16", 16, 10, 15, 0x7bff, true},
    {"F8_E4M3", 8, 3, 7, 0x7e, false},
};

static double decode(const struct format *f, unsigned code) {
    int mantissa = (int)(code & ((1u << f->mantissa_bits) - 1)),
        exponent = (int)(code >> f->mantissa_bits);
    if (exponent == 0)
        return ldexp(mantissa, 1 - f->bias - f->mantissa_bits);
    return ldexp(mantissa + (1 << f->mantissa_bits), exponent - f->bias - f->mantissa_bits);
}

static float to_f32(const struct format *f, unsigned code) {
    uint16_t wide = (uint16_t)code;
    uint8_t narrow = (uint8_t)code;
    return dtype_load(dtype_parse(f->name), f->bits == 8 ? (void *)&narrow : (void *)&wide, 0);
}

static unsigned from_f32(const struct format *f, float value) {
    uint16_t wide = 0;
    uint8_t narrow = 0;
    dtype_store(dtype_parse(f->name), f->bits == 8 ? (void *)&narrow : (void *)&wide, 0, value);
    return f->bits == 8 ? narrow : wide;
}

#define EACH_FORMAT(f) for (const struct format *f = formats; f < formats + 3; f++)

TEST(Dtype, EveryFiniteCodeDecodesByDefinitionAndComesBack) {
    EACH_FORMAT(f) {
        unsigned sign = 1u << (f->bits - 1);
        for (unsigned code = 0; code <= f->largest; code++) {
            ASSERT_TRUE((double)to_f32(f, code) == decode(f, code));
            ASSERT_TRUE((double)to_f32(f, code | sign) == -decode(f, code));
            ASSERT_INT_EQ(from_f32(f, to_f32(f, code)), code);
            ASSERT_INT_EQ(from_f32(f, to_f32(f, code | sign)), code | sign);
        }
        ASSERT_TRUE(signbit(to_f32(f, sign)));
    }
}

TEST(Dtype, EveryOtherCodeIsInfinityOrNan) {
    EACH_FORMAT(f) {
        unsigned sign = 1u << (f->bits - 1);
        for (unsigned code = f->largest + 1; code < sign; code++) {
            bool infinite = f->infinity && code == f->largest + 1;
            ASSERT_TRUE(infinite ? isinf(to_f32(f, code)) : isnan(to_f32(f, code)));
            ASSERT_TRUE(infinite ? to_f32(f, code | sign) < 0 : isnan(to_f32(f, code | sign)));
            unsigned back = from_f32(f, to_f32(f, code));
            ASSERT_TRUE(infinite ? back == code : isnan(to_f32(f, back)));
        }
    }
}

TEST(Dtype, MidpointsRoundToEvenAndTheirNeighboursToTheNearest) {
    EACH_FORMAT(f) {
        unsigned sign = 1u << (f->bits - 1);
        for (unsigned code = 0; code < f->largest; code++) {
            float middle = (float)((decode(f, code) + decode(f, code + 1)) / 2);
            unsigned even = code + (code & 1);
            ASSERT_INT_EQ(from_f32(f, middle), even);
            ASSERT_INT_EQ(from_f32(f, -middle), even | sign);
            ASSERT_INT_EQ(from_f32(f, nextafterf(middle, 0)), code);
            ASSERT_INT_EQ(from_f32(f, nextafterf(middle, INFINITY)), code + 1);
        }
    }
}

TEST(Dtype, OverflowGoesToInfinityOrSaturates) {
    EACH_FORMAT(f) {
        unsigned sign = 1u << (f->bits - 1), over = f->largest + f->infinity;
        /* Half a step above the largest value is where the next one would begin. */
        double step = decode(f, f->largest) - decode(f, f->largest - 1);
        float edge = (float)(decode(f, f->largest) + step / 2);
        EXPECT_INT_EQ(from_f32(f, nextafterf(edge, 0)), f->largest);
        EXPECT_INT_EQ(from_f32(f, edge), over);
        EXPECT_INT_EQ(from_f32(f, INFINITY), over);
        EXPECT_INT_EQ(from_f32(f, -INFINITY), over | sign);
        EXPECT_INT_EQ(from_f32(f, 3.4e38f), f->bits == 16 && f->bias == 127 ? 0x7f80 : over);
    }
}

TEST(Dtype, TinyValuesGoToZeroAndKeepTheirSign) {
    EACH_FORMAT(f) {
        EXPECT_INT_EQ(from_f32(f, 0.0f), 0);
        EXPECT_INT_EQ(from_f32(f, -0.0f), 1u << (f->bits - 1));
        EXPECT_INT_EQ(from_f32(f, 0x1p-149f), 0);
        EXPECT_INT_EQ(from_f32(f, -0x1p-149f), 1u << (f->bits - 1));
    }
}

TEST(Dtype, NamesAndSizesAreThoseOfSafetensors) {
    static const struct {
        enum dtype dtype;
        const char *name;
        size_t bytes;
    } table[] = {
        {DTYPE_F32, "F32", 4},
        {DTYPE_F16, "F16", 2},
        {DTYPE_BF16, "BF16", 2},
        {DTYPE_F8_E4M3, "F8_E4M3", 1},
    };
    for (size_t i = 0; i < 4; i++) {
        EXPECT_INT_EQ(dtype_parse(table[i].name), table[i].dtype);
        EXPECT_STR_EQ(dtype_name(table[i].dtype), table[i].name);
        EXPECT_INT_EQ(dtype_bytes(table[i].dtype), table[i].bytes);
    }
    EXPECT_INT_EQ(dtype_parse("I64"), DTYPE_NONE);
    EXPECT_INT_EQ(dtype_parse("bf16"), DTYPE_NONE);
    EXPECT_INT_EQ(dtype_parse(""), DTYPE_NONE);
    EXPECT_INT_EQ(dtype_bytes(DTYPE_NONE), 0);
}

TEST(Dtype, ArraysNeedNotBeAligned) {
    char bytes[1 + 4 * 4];
    for (int t = DTYPE_F32; t <= DTYPE_F8_E4M3; t++) {
        for (int i = 0; i < 4; i++)
            dtype_store((enum dtype)t, bytes + 1, i, (float)(i - 1) * 1.5f);
        for (int i = 0; i < 4; i++)
            EXPECT_NEAR(dtype_load((enum dtype)t, bytes + 1, i), (i - 1) * 1.5, 0);
    }
}
