/* Reductions of NCCL's stand-in, one hop of the ring after the other.
 *
 * The accumulator travels, so it has the type of the elements: FP16 and BF16 sums are computed in
 * float32 and rounded at each hop. Averages of reals multiply every rank's elements by 1 / size
 * first, as the real library does; averages of integers divide the sum.
 */
#include <immintrin.h>
#include <string.h>

#include "host/dtype.h"
#include "tests/ptxvm/nccl_vm.h"

static const struct {
    const char *name;
    size_t bytes;
} types[] = {
    [ncclInt8] = {"int8", 1},        [ncclUint8] = {"uint8", 1},     [ncclInt32] = {"int32", 4},
    [ncclUint32] = {"uint32", 4},    [ncclInt64] = {"int64", 8},     [ncclUint64] = {"uint64", 8},
    [ncclFloat16] = {"float16", 2},  [ncclFloat32] = {"float32", 4}, [ncclFloat64] = {"float64", 8},
    [ncclBfloat16] = {"bfloat16", 2}};

size_t nccl_type_bytes(ncclDataType_t type) {
    return (size_t)type < sizeof types / sizeof *types ? types[type].bytes : 0;
}

const char *nccl_type_name(ncclDataType_t type) {
    return nccl_type_bytes(type) ? types[type].name : "an unknown type";
}

const char *nccl_op_name(ncclRedOp_t op) {
    static const char *const names[] = {"sum", "prod", "max", "min", "avg"};
    return (size_t)op < sizeof names / sizeof *names ? names[op] : "an unknown reduction";
}

/* ---- one hop --------------------------------------------------------------------------------- */

/* A reduction of a and b, both of the type that it is computed in. */
#define APPLY(op, a, b)                                                                            \
    ((op) == ncclProd  ? (a) * (b)                                                                 \
     : (op) == ncclMax ? ((a) > (b) ? (a) : (b))                                                   \
     : (op) == ncclMin ? ((a) < (b) ? (a) : (b))                                                   \
                       : (a) + (b))

#define HOP(name, T, C, LOAD, STORE)                                                               \
    static void hop_##name(T *to, const T *from, size_t count, ncclRedOp_t op, double factor) {    \
        for (size_t i = 0; i < count; i++) {                                                       \
            C a = LOAD(to[i]), b = op == ncclAvg ? (C)(LOAD(from[i]) * (C)factor) : LOAD(from[i]); \
            to[i] = STORE(APPLY(op, a, b));                                                        \
        }                                                                                          \
    }                                                                                              \
    static void scale_##name(T *to, size_t count, double factor) {                                 \
        for (size_t i = 0; i < count; i++)                                                         \
            to[i] = STORE((C)(LOAD(to[i]) * (C)factor));                                           \
    }
#define PLAIN(x)     (x)
#define FROM_HALF(x) _cvtsh_ss(x)
#define TO_HALF(x)   _cvtss_sh((x), _MM_FROUND_TO_NEAREST_INT)
typedef uint16_t half;
typedef uint16_t bfloat;
HOP(half, half, float, FROM_HALF, TO_HALF)
HOP(bfloat, bfloat, float, bf16_to_f32, bf16_from_f32)
HOP(float, float, float, PLAIN, PLAIN)
HOP(double, double, double, PLAIN, PLAIN)

#define INTEGER_HOP(T)                                                                             \
    static void hop_##T(T *to, const T *from, size_t count, ncclRedOp_t op) {                      \
        for (size_t i = 0; i < count; i++)                                                         \
            to[i] = (T)(APPLY(op, to[i], from[i]));                                                \
    }                                                                                              \
    static void divide_##T(T *to, size_t count, int by) {                                          \
        for (size_t i = 0; i < count; i++)                                                         \
            to[i] = (T)(to[i] / (T)by);                                                            \
    }
INTEGER_HOP(int8_t)
INTEGER_HOP(uint8_t)
INTEGER_HOP(int32_t)
INTEGER_HOP(uint32_t)
INTEGER_HOP(int64_t)
INTEGER_HOP(uint64_t)

/* The accumulator before the first hop. */
static void start(void *to, size_t count, ncclDataType_t type, double factor) {
    if (type == ncclFloat16)
        scale_half(to, count, factor);
    else if (type == ncclBfloat16)
        scale_bfloat(to, count, factor);
    else if (type == ncclFloat32)
        scale_float(to, count, factor);
    else if (type == ncclFloat64)
        scale_double(to, count, factor);
}

static void hop(void *to, const void *from, size_t count, ncclDataType_t type, ncclRedOp_t op,
                double factor) {
    switch (type) {
    case ncclFloat16:
        hop_half(to, from, count, op, factor);
        break;
    case ncclBfloat16:
        hop_bfloat(to, from, count, op, factor);
        break;
    case ncclFloat32:
        hop_float(to, from, count, op, factor);
        break;
    case ncclFloat64:
        hop_double(to, from, count, op, factor);
        break;
    case ncclInt8:
        hop_int8_t(to, from, count, op);
        break;
    case ncclUint8:
        hop_uint8_t(to, from, count, op);
        break;
    case ncclInt32:
        hop_int32_t(to, from, count, op);
        break;
    case ncclUint32:
        hop_uint32_t(to, from, count, op);
        break;
    case ncclInt64:
        hop_int64_t(to, from, count, op);
        break;
    default:
        hop_uint64_t(to, from, count, op);
    }
}

/* The end of an average of integers. */
static void divide(void *to, size_t count, ncclDataType_t type, int by) {
    if (type == ncclInt8)
        divide_int8_t(to, count, by);
    else if (type == ncclUint8)
        divide_uint8_t(to, count, by);
    else if (type == ncclInt32)
        divide_int32_t(to, count, by);
    else if (type == ncclUint32)
        divide_uint32_t(to, count, by);
    else if (type == ncclInt64)
        divide_int64_t(to, count, by);
    else if (type == ncclUint64)
        divide_uint64_t(to, count, by);
}

void nccl_reduce(void *to, const void *const *from, int size, int first, size_t count,
                 ncclDataType_t type, ncclRedOp_t op) {
    double factor = 1.0 / size;
    memcpy(to, from[first], count * nccl_type_bytes(type));
    if (op == ncclAvg)
        start(to, count, type, factor);
    for (int n = 1; n < size; n++)
        hop(to, from[(first + n) % size], count, type, op, factor);
    if (op == ncclAvg)
        divide(to, count, type, size);
}
