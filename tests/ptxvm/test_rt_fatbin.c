/* The fat binary reader: which PTX it takes, and that no container, however broken, is read past
 * its end. */
#include "tests/ptxvm/fatbin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/shim.h"

enum { CONTAINER = 16, HEADER = 72, MAX_BYTES = 4096 };

struct image {
    unsigned char bytes[MAX_BYTES];
    size_t len;
};

static void put(unsigned char *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static void image_init(struct image *im) {
    memset(im, 0, sizeof *im);
    put(im->bytes, 0xba55ed50, 4);
    put(im->bytes + 4, 1, 2);
    put(im->bytes + 6, CONTAINER, 2);
    im->len = CONTAINER;
}

/* Kind 1 is PTX, 2 a cubin. The text is padded with zeros to 8 bytes, as nvcc does. */
static void image_add(struct image *im, int kind, int sm, const char *text) {
    size_t payload = (strlen(text) + 8) / 8 * 8;
    unsigned char *p = im->bytes + im->len;
    put(p, (uint64_t)kind, 2);
    put(p + 4, HEADER, 4);
    put(p + 8, payload, 8);
    put(p + 28, (uint64_t)sm, 4);
    memcpy(p + HEADER, text, strlen(text));
    im->len += HEADER + payload;
    put(im->bytes + 8, im->len - CONTAINER, 8);
}

/* In memory of just that size, so that a sanitizer sees a read past the end. */
static enum fatbin_result find(const struct image *im, size_t len, int sm, char *text,
                               size_t text_bytes) {
    char error[256] = "";
    struct fatbin_ptx ptx = {0};
    unsigned char *copy = malloc(len ? len : 1);
    memcpy(copy, im->bytes, len);
    enum fatbin_result r = fatbin_find_ptx(copy, len, sm, &ptx, error, sizeof error);
    EXPECT_INT_EQ(r != FATBIN_OK, error[0] != 0);
    snprintf(text, text_bytes, "%.*s", r == FATBIN_OK ? (int)ptx.len : 0,
             r == FATBIN_OK ? ptx.text : "");
    free(copy);
    return r;
}

static void typical(struct image *im) {
    image_init(im);
    image_add(im, 2, 89, "\177ELF");
    image_add(im, 1, 80, ".target sm_80\n eighty");
    image_add(im, 1, 89, ".target sm_89\n eighty-nine");
    image_add(im, 1, 90, ".target sm_90a\n hopper only");
}

TEST(RtFatbin, TakesTheArchitectureOrTheNextLowerOne) {
    struct image im;
    typical(&im);
    const struct {
        int sm;
        enum fatbin_result result;
        const char *text;
    } cases[] = {
        {75, FATBIN_NO_PTX, ""},
        {80, FATBIN_OK, ".target sm_80\n eighty"},
        {86, FATBIN_OK, ".target sm_80\n eighty"},
        {89, FATBIN_OK, ".target sm_89\n eighty-nine"},
        {90, FATBIN_OK, ".target sm_90a\n hopper only"},
        {120, FATBIN_OK, ".target sm_89\n eighty-nine"}, /* sm_90a code runs on sm_90 alone */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64];
        EXPECT_INT_EQ(find(&im, im.len, cases[i].sm, text, sizeof text), cases[i].result);
        EXPECT_STR_EQ(text, cases[i].text);
    }
}

TEST(RtFatbin, SaysHowToBuildWhatItCannotRead) {
    struct image im;
    struct fatbin_ptx ptx;
    char error[256];
    image_init(&im);
    image_add(&im, 1, 89, "zstd");
    put(im.bytes + CONTAINER + 16, 4, 4);      /* compressed bytes */
    put(im.bytes + CONTAINER + 40, 0x8011, 8); /* flags as nvcc writes them */
    EXPECT_INT_EQ(fatbin_find_ptx(im.bytes, im.len, 89, &ptx, error, sizeof error),
                  FATBIN_COMPRESSED);
    EXPECT_TRUE(strstr(error, "--no-compress") != NULL);
    EXPECT_INT_EQ(fatbin_find_ptx(im.bytes, im.len, 80, &ptx, error, sizeof error), FATBIN_NO_PTX);
    EXPECT_TRUE(strstr(error, "compute_80") != NULL);
}

TEST(RtFatbin, LyingHeadersAreErrors) {
    static const struct {
        const char *what;
        size_t at;
        int bytes;
        uint64_t value;
    } lies[] = {
        {"magic", 0, 4, 0xba55ed51},
        {"version", 4, 2, 2},
        {"header shorter than itself", 6, 2, 15},
        {"header longer than all", 6, 2, 0xffff},
        {"all entries too long", 8, 8, 100000},
        {"all entries far too long", 8, 8, UINT64_MAX},
        {"entries end inside a header", 8, 8, 40},
        {"entries end inside a payload", 8, 8, HEADER + 4},
        {"entry header shorter than itself", CONTAINER + 4, 4, 63},
        {"entry header of nothing", CONTAINER + 4, 4, 0},
        {"entry header too long", CONTAINER + 4, 4, UINT32_MAX},
        {"payload too long", CONTAINER + 8, 8, 5000},
        {"payload that wraps around", CONTAINER + 8, 8, UINT64_MAX - HEADER + 1},
    };
    char text[64];
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct image im;
        typical(&im);
        put(im.bytes + lies[i].at, lies[i].value, lies[i].bytes);
        if (find(&im, im.len, 89, text, sizeof text) != FATBIN_MALFORMED)
            FAIL("%s was not found", lies[i].what);
        typical(&im);
        EXPECT_INT_EQ(find(&im, im.len, 89, text, sizeof text), FATBIN_OK);
    }
}

TEST(RtFatbin, EveryTruncationIsAnError) {
    struct image im;
    char text[64];
    typical(&im);
    for (size_t len = 0; len < im.len; len++)
        EXPECT_INT_EQ(find(&im, len, 89, text, sizeof text), FATBIN_MALFORMED);
}

/* Any byte may be anything: whatever the result, nothing outside is read. */
TEST(RtFatbin, RandomBytesAreSurvived) {
    struct image im;
    char text[64];
    uint32_t seed = 1;
    for (int i = 0; i < 20000; i++) {
        typical(&im);
        for (int k = 0; k < 3; k++) {
            seed = seed * 1664525 + 1013904223;
            im.bytes[(seed >> 8) % im.len] = (unsigned char)(seed >> 24);
        }
        find(&im, im.len, 89, text, sizeof text);
    }
}
