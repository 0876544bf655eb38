/* The safetensors reader against good, lying and mutilated files. */
#include "host/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/shim.h"
#include "tests/tensor_file.h"

/* a [2, 3] F32, an empty tensor, a scalar, one of a type that we do not read; 24 + 0 + 2 + 8 bytes.
 */
static void good_file(struct buffer *out) {
    static const float a[6] = {1, 2, 3, 4, 5, 6};
    struct tensor_file f = {0};
    tensor_file_add(&f, "a", "F32", "2, 3", a, sizeof a);
    tensor_file_add(&f, "empty", "BF16", "0, 7", NULL, 0);
    tensor_file_add(&f, "scalar", "BF16", "", NULL, 2);
    tensor_file_add(&f, "ids", "I64", "1", NULL, 8);
    tensor_file_finish(&f, out);
}

/* Opens bytes in an allocation of exactly their size, so that ASan sees a read past the end. */
static int open_bytes(const void *data, size_t len, struct error *error) {
    struct safetensors *s;
    char *copy = xmalloc(len);
    memcpy(copy, data, len);
    memset(error, 0, sizeof *error);
    int rc = safetensors_open_memory(copy, len, "model.safetensors", &s, error);
    if (rc == 0)
        safetensors_close(s);
    else
        EXPECT_TRUE(s == NULL && error->code == rc && error->text[0]);
    free(copy);
    return rc;
}

static int open_header(const char *header, size_t data_bytes, struct error *error) {
    struct buffer b = {0};
    tensor_file_from_header(header, data_bytes, &b);
    int rc = open_bytes(b.data, b.len, error);
    buffer_deinit(&b);
    return rc;
}

static void expect_good_file_opens(void) {
    struct buffer b = {0};
    struct error e;
    good_file(&b);
    EXPECT_INT_EQ(open_bytes(b.data, b.len, &e), 0);
    buffer_deinit(&b);
}

TEST(Safetensors, ReadsNamesShapesTypesAndData) {
    struct buffer b = {0};
    struct safetensors *s;
    good_file(&b);
    ASSERT_INT_EQ(safetensors_open_memory(b.data, b.len, "x", &s, NULL), 0);
    EXPECT_INT_EQ(safetensors_count(s), 4);
    EXPECT_INT_EQ(safetensors_bytes(s), b.len);
    const struct tensor_view *a = safetensors_find(s, "a");
    ASSERT_TRUE(a != NULL);
    EXPECT_STR_EQ(a->name, "a");
    EXPECT_STR_EQ(a->path, "x");
    EXPECT_INT_EQ(a->ndim, 2);
    EXPECT_INT_EQ(a->shape[0], 2);
    EXPECT_INT_EQ(a->shape[1], 3);
    EXPECT_INT_EQ(a->dtype, DTYPE_F32);
    EXPECT_INT_EQ(a->bytes, 24);
    EXPECT_NEAR(dtype_load(a->dtype, a->data, 5), 6, 0);
    EXPECT_INT_EQ(safetensors_find(s, "empty")->bytes, 0);
    EXPECT_INT_EQ(safetensors_find(s, "scalar")->ndim, 0);
    EXPECT_INT_EQ(safetensors_find(s, "ids")->dtype, DTYPE_NONE);
    EXPECT_STR_EQ(safetensors_find(s, "ids")->dtype_text, "I64");
    EXPECT_TRUE(safetensors_find(s, "b") == NULL);
    EXPECT_TRUE(safetensors_find(s, "") == NULL);
    for (size_t i = 0; i < 4; i++)
        EXPECT_TRUE(safetensors_find(s, safetensors_at(s, i)->name) == safetensors_at(s, i));
    safetensors_close(s);
    buffer_deinit(&b);
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
    static const struct {
        const char *header;
        size_t data_bytes;
    } table[] = {
        {"{}", 0},
        {"{}      ", 0},
        {"{\"__metadata__\":{}}", 0},
        {"{\"__metadata__\":{\"format\":\"pt\",\"a\":\"\\u00e9\\n\"}}", 0},
        {"{ \"a\" : {\n\"shape\" : [ 2 ] ,\t\"data_offsets\":[0,\r4],\"dtype\":\"F16\" } } ", 4},
        /* the order in the header is free, that of the data is not */
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[3,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}",
         4},
        {"{\"a\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[1,1,1,1],\"data_offsets\":[0,8]}}", 8},
        {"{\"a\":{\"dtype\":\"F8_E5M2\",\"shape\":[5],\"data_offsets\":[0,5]}}", 5},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[6],\"data_offsets\":[0,3]}}", 3},
        /* empty tensors at the start, between and at the end */
        {"{\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[2,2]},"
         "\"c\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[2,2]}}",
         2},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807],\"data_offsets\":[0,0]}}", 0},
    };
    struct error e;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (open_header(table[i].header, table[i].data_bytes, &e) != 0)
            FAIL("%s: %s", table[i].header, e.text);
}

TEST(Safetensors, DecodesEscapedNames) {
    static const char header[] =
        "{\"\\u0061\\\"\\\\\\/\\u00e9\\u20ac\\ud83d\\ude00\xc3\xa9\xf0\x9f\x98\x80\":"
        "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    struct buffer b = {0};
    struct safetensors *s;
    tensor_file_from_header(header, 0, &b);
    ASSERT_INT_EQ(safetensors_open_memory(b.data, b.len, "x", &s, NULL), 0);
    EXPECT_STR_EQ(safetensors_at(s, 0)->name,
                  "a\"\\/\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xc3\xa9\xf0\x9f\x98\x80");
    safetensors_close(s);
    buffer_deinit(&b);
}

/* One tensor "w" with these values, after 8 bytes of tensor "v". */
#define W(dtype, shape, offsets)                                                                   \
    "{\"v\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"w\":{\"dtype\":" dtype       \
    ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header;
    size_t data_bytes;
    const char *message;
} bad_headers[] = {
    {"", 0, "expected '{'"},
    {" {}", 0, "expected '{'"},
    {"[]", 0, "expected '{'"},
    {"{", 0, "expected '\"'"},
    {"{}}", 0, "after the end"},
    {"{} {}", 0, "after the end"},
    {"{,}", 0, "expected '\"'"},
    {"{\"a\"}", 0, "expected ':'"},
    {"{\"a\":1}", 0, "a: header byte 5: expected '{'"},
    {"{\"a\":[]}", 0, "a: header byte 5: expected '{'"},
    {"{\"a\":{}}", 0, "expected '\"'"},
    {"{\"a\":null}", 0, "expected '{'"},
    {"{\"a\":{\"dtype\":\"U8\"}}", 0, "needs dtype, shape and two data_offsets"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],}}", 0, "expected '\"'"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0,
     "twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":1}}", 0, "unknown key"},
    {"{\"a\":{\"dtype\":7,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "expected '\"'"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "expected '\"'"},
    {"{\"__metadata__\":[]}", 0, "expected '{'"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
    {"{\"\xff\":{}}", 0, "not UTF-8"},
    {"{\"\xc0\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xed\xa0\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xf4\x90\x80\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xe2\x82\":{}}", 0, "not UTF-8"},
    {"{\"a\n\":{}}", 0, "control character"},
    {"{\"a\\n\":{}}", 0, "control character in a tensor's name"},
    {"{\"a\\u0000b\":{}}", 0, "control character in a tensor's name"},
    {"{\"a\\x\":{}}", 0, "bad escape"},
    {"{\"a\\u12g4\":{}}", 0, "bad \\u escape"},
    {"{\"a\\u12", 0, "bad \\u escape"},
    {"{\"a\\udc00\":{}}", 0, "bad \\u escape"},
    {"{\"a\\ud800\":{}}", 0, "half of a surrogate pair"},
    {"{\"a\\ud800\\u0041\":{}}", 0, "half of a surrogate pair"},
    {"{\"a\\", 0, "bad escape"},
    {"{\"a", 0, "unterminated"},
    {W("\"U8\"", "[-1]", "[8,8]"), 8, "w: header byte 80: expected an integer of at least 0"},
    {W("\"U8\"", "[1.0]", "[8,9]"), 9, "expected ',' or ']'"},
    {W("\"U8\"", "[1e0]", "[8,9]"), 9, "expected ',' or ']'"},
    {W("\"U8\"", "[01]", "[8,9]"), 9, "integer"},
    {W("\"U8\"", "[\"1\"]", "[8,9]"), 9, "integer"},
    {W("\"U8\"", "[true]", "[8,9]"), 9, "integer"},
    {W("\"U8\"", "[null]", "[8,9]"), 9, "integer"},
    {W("\"U8\"", "[[1]]", "[8,9]"), 9, "integer"},
    {W("\"U8\"", "[1,]", "[8,9]"), 9, "integer"},
    {W("\"U8\"", "{}", "[8,9]"), 9, "expected '['"},
    {W("\"U8\"", "null", "[8,9]"), 9, "expected '['"},
    {W("\"U8\"", "[1,1,1,1,1]", "[8,9]"), 9, "more than 4"},
    {W("\"U8\"", "[9223372036854775808]", "[8,8]"), 8, "number too large"},
    {W("\"U8\"", "[99999999999999999999999]", "[8,8]"), 8, "number too large"},
    {W("\"U8\"", "[9223372036854775807]", "[8,8]"), 8, "tensor w: its size overflows"},
    {W("\"F32\"", "[4294967296,4294967296]", "[8,8]"), 8, "tensor w: its size overflows"},
    {W("\"F32\"", "[2147483648,2147483648,4]", "[8,8]"), 8, "overflows"},
    {W("\"F32\"", "[4294967296,4294967296,0]", "[8,8]"), 8, "overflows"},
    {W("\"F4\"", "[3]", "[8,10]"), 10, "shape and dtype make 2 bytes, data_offsets 2"},
    {W("\"F4\"", "[3]", "[8,9]"), 9, "shape and dtype make 2 bytes, data_offsets 1"},
    {W("\"F99\"", "[1]", "[8,9]"), 9, "tensor w: unknown dtype \"F99\""},
    {W("\"f32\"", "[1]", "[8,12]"), 12, "unknown dtype"},
    {W("\"\"", "[1]", "[8,9]"), 9, "unknown dtype"},
    {W("\"F32F32F32F32F32F32F32F32\"", "[1]", "[8,9]"), 9, "unknown dtype"},
    {W("\"U8\"", "[1]", "[8]"), 9, "two data_offsets"},
    {W("\"U8\"", "[1]", "[]"), 9, "two data_offsets"},
    {W("\"U8\"", "[1]", "[8,9,10]"), 9, "more than 2"},
    {W("\"U8\"", "[1]", "[8,-9]"), 9, "integer"},
    {W("\"U8\"", "[1]", "[9,8]"), 9, "[9, 8] are outside"},
    {W("\"U8\"", "[1]", "[8,10]"), 10, "shape and dtype make 1 bytes, data_offsets 2"},
    {W("\"U8\"", "[3]", "[8,10]"), 10, "shape and dtype make 3 bytes, data_offsets 2"},
    {W("\"U8\"", "[2]", "[8,10]"), 9, "[8, 10] are outside the file's 9 bytes"},
    {W("\"U8\"", "[2]", "[8,9223372036854775807]"), 10, "are outside"},
    {W("\"U8\"", "[2]", "[9223372036854775805,9223372036854775807]"), 10, "are outside"},
    {W("\"U8\"", "[2]", "[8,18446744073709551615]"), 10, "number too large"},
    {W("\"U8\"", "[2]", "[9,11]"), 11, "tensor w: gap before"},
    {W("\"U8\"", "[2]", "[7,9]"), 9, "tensor w: overlap before"},
    {W("\"U8\"", "[2]", "[0,2]"), 8, "overlap"},
    {W("\"U8\"", "[8]", "[0,8]"), 8, "overlap"},
    {W("\"U8\"", "[0]", "[4,4]"), 8, "overlap"},
    {W("\"U8\"", "[2]", "[8,10]"), 11, "1 bytes after the last"},
    {"{}", 1, "1 bytes after the last"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "tensor a stands twice"},
};

TEST(Safetensors, RefusesEachBadHeaderAndThenReadsAGoodOne) {
    struct error e;
    for (size_t i = 0; i < sizeof bad_headers / sizeof bad_headers[0]; i++) {
        int rc = open_header(bad_headers[i].header, bad_headers[i].data_bytes, &e);
        EXPECT_TRUE(rc == ERR_BAD_FILE || rc == ERR_UNSUPPORTED);
        if (!strstr(e.text, bad_headers[i].message) || !strstr(e.text, "model.safetensors"))
            FAIL("%s: message \"%s\" lacks \"%s\"", bad_headers[i].header, e.text,
                 bad_headers[i].message);
        expect_good_file_opens();
    }
}

TEST(Safetensors, RefusesEveryTruncationAndEveryExtension) {
    struct buffer b = {0};
    struct error e;
    good_file(&b);
    for (size_t len = 0; len < b.len; len++)
        if (open_bytes(b.data, len, &e) != ERR_BAD_FILE)
            FAIL("accepted the first %zu of %zu bytes", len, b.len);
    buffer_putc(&b, 0);
    EXPECT_INT_EQ(open_bytes(b.data, b.len, &e), ERR_BAD_FILE);
    buffer_deinit(&b);
    expect_good_file_opens();
}

TEST(Safetensors, RefusesEveryLyingHeaderLength) {
    static const uint64_t lies[] = {
        0,
        1,
        2,
        100000000,
        100000001,
        0x7fffffff,
        0xffffffff,
        0x100000000,
        (uint64_t)INT64_MAX,
        (uint64_t)INT64_MAX + 1,
        UINT64_MAX,
        UINT64_MAX - 7,
        UINT64_MAX - 8,
    };
    struct buffer b = {0};
    struct error e;
    good_file(&b);
    uint64_t truth = b.len - 8 - 34;
    for (uint64_t n = 0; n < b.len + 20; n++) {
        memcpy(b.data, &n, 8); /* tests run on little-endian machines */
        EXPECT_INT_EQ(open_bytes(b.data, b.len, &e), n == truth ? 0 : ERR_BAD_FILE);
    }
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        memcpy(b.data, &lies[i], 8);
        EXPECT_INT_EQ(open_bytes(b.data, b.len, &e), ERR_BAD_FILE);
    }
    buffer_deinit(&b);
    expect_good_file_opens();
}

TEST(Safetensors, DeepNestingIsRefusedAtItsFirstLevel) {
    static const char *const opening[] = {"[", "{\"a\":", "[[{\"b\":["};
    static const char *const before[] = {"{\"a\":", "{\"a\":{\"shape\":", "{\"__metadata__\":"};
    for (size_t i = 0; i < 3; i++) {
        struct buffer header = {0};
        struct error e;
        buffer_puts(&header, before[i]);
        for (int k = 0; k < 1000000; k++)
            buffer_puts(&header, opening[i]);
        buffer_putc(&header, 0);
        EXPECT_INT_EQ(open_header(header.data, 0, &e), ERR_BAD_FILE);
        buffer_deinit(&header);
    }
    expect_good_file_opens();
}

TEST(Safetensors, UnalignedDataIsRead) {
    static const float value = 1.5f;
    struct tensor_file f = {0};
    struct buffer b = {0};
    struct safetensors *s;
    tensor_file_add(&f, "odd", "U8", "1", NULL, 1);
    tensor_file_add(&f, "x", "F32", "1", &value, 4);
    tensor_file_finish(&f, &b);
    ASSERT_INT_EQ(safetensors_open_memory(b.data, b.len, "x", &s, NULL), 0);
    const struct tensor_view *x = safetensors_find(s, "x");
    EXPECT_NEAR(dtype_load(x->dtype, x->data, 0), 1.5, 0);
    safetensors_close(s);
    buffer_deinit(&b);
}

TEST(Safetensors, FindsEachOfManyTensors) {
    struct tensor_file f = {0};
    struct buffer b = {0};
    struct safetensors *s;
    char name[64];
    for (int i = 0; i < 20000; i++) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.weight", i % 97, i);
        tensor_file_add(&f, name, "U8", "3", name, 3);
    }
    tensor_file_finish(&f, &b);
    ASSERT_INT_EQ(safetensors_open_memory(b.data, b.len, "x", &s, NULL), 0);
    ASSERT_INT_EQ(safetensors_count(s), 20000);
    const char *data = b.data + b.len - 60000;
    for (int i = 0; i < 20000; i++) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.weight", i % 97, i);
        const struct tensor_view *t = safetensors_find(s, name);
        ASSERT_TRUE(t != NULL && t->data == data + 3 * i);
    }
    safetensors_close(s);
    buffer_deinit(&b);
}

TEST(Safetensors, MoreTensorsThanTheLimitAreRefused) {
    struct buffer header = {0};
    struct error e;
    buffer_putc(&header, '{');
    for (int i = 0; i <= SAFETENSORS_MAX_TENSORS; i++)
        buffer_printf(&header, "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                      i ? "," : "", i);
    buffer_append(&header, "}", 2);
    EXPECT_INT_EQ(open_header(header.data, 0, &e), ERR_BAD_FILE);
    EXPECT_TRUE(strstr(e.text, "more than 262144 tensors") != NULL);
    buffer_deinit(&header);
    expect_good_file_opens();
}

TEST(Safetensors, FilesThatCannotBeReadAreNamed) {
    struct safetensors *s;
    struct error e = {0};
    const char *dir = scratch_folder("safetensors");
    EXPECT_INT_EQ(safetensors_open(in_folder(dir, "none"), &s, &e), ERR_NOT_FOUND);
    EXPECT_TRUE(s == NULL && strstr(e.text, "/none") != NULL);
    EXPECT_INT_EQ(safetensors_open(dir, &s, &e), ERR_IO);
    write_file(in_folder(dir, "empty"), NULL, 0);
    EXPECT_INT_EQ(safetensors_open(in_folder(dir, "empty"), &s, &e), ERR_BAD_FILE);
    EXPECT_TRUE(s == NULL && strstr(e.text, "/empty") != NULL);
    struct buffer b = {0};
    good_file(&b);
    write_file(in_folder(dir, "good"), b.data, b.len);
    ASSERT_INT_EQ(safetensors_open(in_folder(dir, "good"), &s, &e), 0);
    EXPECT_INT_EQ(safetensors_count(s), 4);
    safetensors_close(s);
    safetensors_close(NULL);
    buffer_deinit(&b);
}
