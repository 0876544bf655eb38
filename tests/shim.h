/* shim: GoogleTest for tests written in C.
 *
 *     TEST(KvCache, FreedBlocksAreReusedInOrder) {
 *         ASSERT_INT_EQ(kv_cache_num_free(kv), 3);
 *     }
 *
 * TEST registers a C function before main; the runner in shim.cc hands it to GoogleTest, so
 * --gtest_filter and the usual reports work. EXPECT_* records a failure and goes on; ASSERT_*
 * records it and returns from the enclosing function, which must return void (use shim_failed() to
 * stop a caller). A test that runs longer than 120 s (TEST_TIMEOUT_S) is ended with its name.
 *
 * Tests that need processes of their own start the test program again, as one of its small
 * programs: `--program=NAME ARGUMENTS...` runs what PROGRAM(name) defines in place of the tests.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TEST(suite, name)                                                                          \
    static void suite##_##name(void);                                                              \
    __attribute__((constructor)) static void register_##suite##_##name(void) {                     \
        shim_register(#suite, #name, __FILE__, __LINE__, suite##_##name);                          \
    }                                                                                              \
    static void suite##_##name(void)

#define PROGRAM(name)                                                                              \
    static int program_##name(int argc, char **argv);                                              \
    __attribute__((constructor)) static void register_program_##name(void) {                       \
        shim_register_program(#name, program_##name);                                              \
    }                                                                                              \
    static int program_##name(int argc, char **argv)

/* Each returns whether the check held. */
bool shim_true(const char *file, int line, const char *expr, bool ok);
bool shim_int(const char *file, int line, const char *a_expr, const char *b_expr, const char *op,
              int64_t a, int64_t b);
bool shim_str(const char *file, int line, const char *a_expr, const char *b_expr, const char *a,
              const char *b);
bool shim_near(const char *file, int line, const char *a_expr, const char *b_expr, double a,
               double b, double tolerance);
bool shim_mem(const char *file, int line, const char *a_expr, const char *b_expr, const void *a,
              const void *b, uint64_t bytes);
/* Records a failure with a message of its own. */
void shim_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Marks the running test as skipped, with the reason. */
void shim_skip(const char *file, int line, const char *reason);
/* Has the running test failed so far? */
bool shim_failed(void);
void shim_register(const char *suite, const char *name, const char *file, int line,
                   void (*fn)(void));
/* argv[0] is the program's name; the result is the exit status. */
void shim_register_program(const char *name, int (*fn)(int argc, char **argv));
/* The folder of the test data ("tests/data"), and one for scratch files, made anew for each run. */
const char *shim_data_dir(void);
const char *shim_scratch_dir(void);

#define EXPECT_TRUE(c)             shim_true(__FILE__, __LINE__, #c, (c))
#define EXPECT_FALSE(c)            shim_true(__FILE__, __LINE__, "!(" #c ")", !(c))
#define EXPECT_INT_EQ(a, b)        shim_int(__FILE__, __LINE__, #a, #b, "==", (int64_t)(a), (int64_t)(b))
#define EXPECT_INT_NE(a, b)        shim_int(__FILE__, __LINE__, #a, #b, "!=", (int64_t)(a), (int64_t)(b))
#define EXPECT_INT_LE(a, b)        shim_int(__FILE__, __LINE__, #a, #b, "<=", (int64_t)(a), (int64_t)(b))
#define EXPECT_INT_LT(a, b)        shim_int(__FILE__, __LINE__, #a, #b, "<", (int64_t)(a), (int64_t)(b))
#define EXPECT_INT_GE(a, b)        shim_int(__FILE__, __LINE__, #a, #b, ">=", (int64_t)(a), (int64_t)(b))
#define EXPECT_INT_GT(a, b)        shim_int(__FILE__, __LINE__, #a, #b, ">", (int64_t)(a), (int64_t)(b))
#define EXPECT_STR_EQ(a, b)        shim_str(__FILE__, __LINE__, #a, #b, (a), (b))
#define EXPECT_NEAR(a, b, t)       shim_near(__FILE__, __LINE__, #a, #b, (a), (b), (t))
#define EXPECT_MEM_EQ(a, b, bytes) shim_mem(__FILE__, __LINE__, #a, #b, (a), (b), (uint64_t)(bytes))
#define FAIL(...)                  shim_fail(__FILE__, __LINE__, __VA_ARGS__)

#define SHIM_OR_RETURN(check)                                                                      \
    do {                                                                                           \
        if (!(check))                                                                              \
            return;                                                                                \
    } while (0)
#define ASSERT_TRUE(c)             SHIM_OR_RETURN(EXPECT_TRUE(c))
#define ASSERT_FALSE(c)            SHIM_OR_RETURN(EXPECT_FALSE(c))
#define ASSERT_INT_EQ(a, b)        SHIM_OR_RETURN(EXPECT_INT_EQ(a, b))
#define ASSERT_INT_NE(a, b)        SHIM_OR_RETURN(EXPECT_INT_NE(a, b))
#define ASSERT_INT_GE(a, b)        SHIM_OR_RETURN(EXPECT_INT_GE(a, b))
#define ASSERT_INT_GT(a, b)        SHIM_OR_RETURN(EXPECT_INT_GT(a, b))
#define ASSERT_STR_EQ(a, b)        SHIM_OR_RETURN(EXPECT_STR_EQ(a, b))
#define ASSERT_MEM_EQ(a, b, bytes) SHIM_OR_RETURN(EXPECT_MEM_EQ(a, b, bytes))
#define SKIP(reason)                                                                               \
    do {                                                                                           \
        shim_skip(__FILE__, __LINE__, reason);                                                     \
        return;                                                                                    \
    } while (0)

#ifdef __cplusplus
}
#endif
