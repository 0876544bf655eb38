/* API keys: the file's format and its messages, reloads, limits with a clock of the test's own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/log.h"
#include "net/keys.h"
#include "tests/shim.h"

enum { SECOND = 1000000 };

static const char *key_file(void) {
    static char path[256];
    snprintf(path, sizeof path, "%s/keys.txt", shim_scratch_dir());
    return path;
}

static void write_keys(const char *text, size_t len) {
    FILE *f = fopen(key_file(), "w");
    fwrite(text, 1, len, f);
    fclose(f);
    chmod(key_file(), 0600);
}

/* Keys of a file with this text; NULL with a message. */
static struct keys *keys_of(const char *text, struct error *e) {
    struct keys_options o = {.file = key_file()};
    struct keys *k;
    write_keys(text, strlen(text));
    memset(e, 0, sizeof *e);
    keys_create(&o, &k, e);
    return k;
}

static struct api_key *find(struct keys *k, const char *text) {
    return keys_find(k, text, strlen(text));
}

static const char *name_of(struct keys *k, const char *text) {
    struct api_key *key = find(k, text);
    return key ? api_key_name(key) : "(none)";
}

TEST(Keys, WithoutAnyEverybodyMayUseTheServer) {
    struct keys_options o = {0};
    struct keys *k;
    struct error e = {0};
    double retry;
    ASSERT_INT_EQ(keys_create(&o, &k, &e), 0);
    EXPECT_FALSE(keys_required(k));
    EXPECT_TRUE(find(k, "anything") == NULL);
    EXPECT_INT_EQ(api_key_begin(NULL, 1, 5, 0, &retry, &e), 0);
    api_key_end(NULL, 1, 5, 0);
    keys_destroy(k);
    keys_destroy(NULL);
}

TEST(Keys, AreFoundByTheirWholeTextOnly) {
    static const char *const texts[] = {"sk-one", "sk-two"};
    struct keys_options o = {.texts = texts, .num_texts = 2};
    struct keys *k;
    struct error e = {0};
    ASSERT_INT_EQ(keys_create(&o, &k, &e), 0);
    EXPECT_TRUE(keys_required(k));
    EXPECT_STR_EQ(name_of(k, "sk-one"), "key-1");
    EXPECT_STR_EQ(name_of(k, "sk-two"), "key-2");
    static const char *const others[] = {"", "sk-on", "sk-onee", "sk-One", "sk-one ", "sk-three"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        EXPECT_TRUE(find(k, others[i]) == NULL);
    EXPECT_TRUE(keys_find(k, "sk-one\0", 7) == NULL);
    keys_destroy(k);
}

TEST(Keys, AFileHasCommentsBlankLinesAndCrLf) {
    static const char text[] = "# keys of the lab\r\n"
                               "\n"
                               "   \t \r\n"
                               "alpha name=alice max-requests=2   # of the first floor\r\n"
                               "\tbeta#1\ttokens-per-minute=60 name=Bob.2_x-y\n"
                               "gamma#\r\n"
                               "p=\"q\",r;s\\~! #no comment is part of it";
    struct error e;
    struct keys *k = keys_of(text, &e);
    ASSERT_STR_EQ(e.text, "");
    EXPECT_STR_EQ(name_of(k, "alpha"), "alice");
    EXPECT_STR_EQ(name_of(k, "beta#1"), "Bob.2_x-y");
    EXPECT_STR_EQ(name_of(k, "gamma#"), "key-3");
    EXPECT_STR_EQ(name_of(k, "p=\"q\",r;s\\~!"), "key-4");
    EXPECT_STR_EQ(name_of(k, "#"), "(none)");
    keys_destroy(k);
}

TEST(Keys, HaveOneTo512BytesOfPrintableAscii) {
    char text[700], longest[513];
    struct error e;
    memset(longest, 'x', 512);
    longest[512] = '\0';
    snprintf(text, sizeof text, "!\n%s\n~\n", longest);
    struct keys *k = keys_of(text, &e);
    ASSERT_STR_EQ(e.text, "");
    EXPECT_STR_EQ(name_of(k, "!"), "key-1");
    EXPECT_STR_EQ(name_of(k, longest), "key-2");
    EXPECT_STR_EQ(name_of(k, "~"), "key-3");
    keys_destroy(k);
}

/* Every message names the line and none says what stands there. */
TEST(Keys, MessagesNameLinesAndNeverQuoteThem) {
    static char too_long[600];
    memset(too_long, 'S', 513);
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"ok\nSECRET name=\n", ":2: name= takes 1 to 64 letters"},
        {"SECRET name=a/SECRET\n", ":1: name= takes 1 to 64 letters"},
        {"SECRET max-requests=\n", ":1: max-requests= takes 0"},
        {"SECRET max-requests=-1\n", ":1: max-requests= takes 0"},
        {"SECRET max-requests=99999999999999999999\n", ":1: max-requests= takes 0"},
        {"SECRET tokens-per-minute=1k\n", ":1: tokens-per-minute= takes 0"},
        {"SECRET tokens-per-minute=99999999999999\n", ":1: tokens-per-minute= takes 0"},
        {"one\n\n# two\nSECRET SECRET\n", ":4: behind the key, only name="},
        {"SECRET nmae=SECRET\n", ":1: behind the key, only name="},
        {"name=SECRET\n", ":1: the key comes first"},
        {"SECRET\xc3\xa9\n", ":1: a key is of printable ASCII"},
        {"\xef\xbb\xbfSECRET\n", ":1: a key is of printable ASCII"},
        {"SECRET\x01\n", ":1: a key is of printable ASCII"},
        {"SECRET\rSECRET\n", ":1: a key is of printable ASCII"},
        {too_long, ":1: a key has 1 to 512 bytes"},
        {"SECRET\nb\nSECRET name=c\n", "keys.txt:3: the same key as "},
        {"SECRET name=me\nSECRET2 name=me\n", "keys.txt:2: its name is me, as that of "},
        {"SECRET name=key-2\nSECRET2\n", "keys.txt:2: its name is key-2, as that of "},
        {"# none\n", "holds no key"},
        {"", "holds no key"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error e;
        EXPECT_TRUE(keys_of(cases[i].text, &e) == NULL);
        EXPECT_INT_EQ(e.code, ERR_CONFIG);
        if (!EXPECT_TRUE(strstr(e.text, cases[i].message) != NULL))
            FAIL("case %zu: %s", i, e.text);
        EXPECT_TRUE(strstr(e.text, "SECRET") == NULL && strstr(e.text, "SSS") == NULL);
    }
}

TEST(Keys, AFileMayHoldNulBytesOrBeMissing) {
    struct keys_options o = {.file = key_file()};
    struct keys *k;
    struct error e = {0};
    write_keys("ab\0cd\n", 6);
    EXPECT_INT_EQ(keys_create(&o, &k, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, ":1: a key is of printable ASCII") != NULL);
    unlink(key_file());
    EXPECT_INT_EQ(keys_create(&o, &k, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "keys.txt: No such file") != NULL);
    mkfifo(key_file(), 0600); /* nobody writes: it must not be waited for */
    EXPECT_INT_EQ(keys_create(&o, &k, &e), ERR_CONFIG);
    unlink(key_file());
}

TEST(Keys, OptionsAndFileTogetherAreCheckedAsOne) {
    static const char *const texts[] = {"sk-one"}, *const bad[] = {"good", "SECRET 2"},
                             *const empty[] = {""};
    struct keys_options o = {.texts = texts, .num_texts = 1, .file = key_file()};
    struct keys *k;
    struct error e = {0};
    write_keys("# nothing yet\n", 14);
    ASSERT_INT_EQ(keys_create(&o, &k, &e), 0);
    EXPECT_TRUE(keys_required(k));
    write_keys("\nsk-one\n", 8);
    EXPECT_INT_EQ(keys_reload(k, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "keys.txt:2: the same key as --api-key number 1") != NULL);
    EXPECT_STR_EQ(name_of(k, "sk-one"), "key-1");
    keys_destroy(k);
    o = (struct keys_options){.texts = bad, .num_texts = 2};
    EXPECT_INT_EQ(keys_create(&o, &k, &e), ERR_CONFIG);
    EXPECT_STR_EQ(e.text, "--api-key number 2: a key is of printable ASCII, without spaces");
    o = (struct keys_options){.texts = empty, .num_texts = 1};
    EXPECT_INT_EQ(keys_create(&o, &k, &e), ERR_CONFIG);
    EXPECT_STR_EQ(e.text, "--api-key number 1: a key has 1 to 512 bytes");
}

TEST(Keys, AReloadAddsRenamesAndTakesAway) {
    struct error e, none = {0};
    double retry;
    struct keys *k = keys_of("alpha name=a max-requests=1\nbeta\n", &e);
    ASSERT_TRUE(k != NULL);
    struct api_key *alpha = find(k, "alpha");
    ASSERT_INT_EQ(api_key_begin(alpha, 1, 1, 0, &retry, &e), 0);

    write_keys("beta name=b\ngamma\n", 18);
    ASSERT_INT_EQ(keys_reload(k, &e), 0);
    EXPECT_TRUE(find(k, "alpha") == NULL);
    EXPECT_STR_EQ(name_of(k, "beta"), "b");
    EXPECT_STR_EQ(name_of(k, "gamma"), "key-2");
    /* Its request goes on, the next one is refused. */
    EXPECT_STR_EQ(api_key_name(alpha), "a");
    EXPECT_INT_EQ(api_key_begin(alpha, 1, 1, 0, &retry, &e), ERR_UNAUTHORIZED);

    /* Back again, it is the same key: its request still counts. */
    write_keys("alpha name=a max-requests=1\n", 28);
    ASSERT_INT_EQ(keys_reload(k, &e), 0);
    EXPECT_TRUE(find(k, "alpha") == alpha);
    EXPECT_TRUE(find(k, "beta") == NULL);
    EXPECT_INT_EQ(api_key_begin(alpha, 1, 1, 0, &retry, &e), ERR_OVERLOADED);
    api_key_end(alpha, 1, 1, 0);
    EXPECT_INT_EQ(api_key_begin(alpha, 1, 1, 0, &retry, &none), 0);
    api_key_end(alpha, 1, 0, 0);
    keys_destroy(k);
}

TEST(Keys, AReloadThatFailsChangesNothing) {
    struct error e;
    struct keys *k = keys_of("alpha name=a\nbeta\n", &e);
    ASSERT_TRUE(k != NULL);
    write_keys("beta\ngamma oops\n", 16);
    EXPECT_INT_EQ(keys_reload(k, &e), ERR_CONFIG);
    unlink(key_file());
    EXPECT_INT_EQ(keys_reload(k, &e), ERR_CONFIG);
    EXPECT_STR_EQ(name_of(k, "alpha"), "a");
    EXPECT_STR_EQ(name_of(k, "beta"), "key-2");
    EXPECT_STR_EQ(name_of(k, "gamma"), "(none)");
    keys_destroy(k);
}

TEST(Keys, RunAsManyRequestsAsTheyMay) {
    struct keys_options o = {.file = key_file(), .max_requests = 2};
    struct keys *k;
    struct error e = {0};
    double retry;
    write_keys("a\nb max-requests=1\nc max-requests=0\n", 36);
    ASSERT_INT_EQ(keys_create(&o, &k, &e), 0);
    static const struct {
        const char *key;
        int32_t most;
    } cases[] = {{"a", 2}, {"b", 1}, {"c", 1000}};
    for (int i = 0; i < 3; i++) {
        struct api_key *key = find(k, cases[i].key);
        for (int32_t n = 0; n < cases[i].most; n++)
            ASSERT_INT_EQ(api_key_begin(key, 1, 1000000, 0, &retry, &e), 0);
        if (i < 2) {
            EXPECT_INT_EQ(api_key_begin(key, 1, 1, 0, &retry, &e), ERR_OVERLOADED);
            EXPECT_NEAR(retry, 1, 0);
            api_key_end(key, 1, 5, 0);
            EXPECT_INT_EQ(api_key_begin(key, 1, 1, 0, &retry, &e), 0);
        }
    }
    keys_destroy(k);
}

TEST(Keys, EachOfSeveralAnswersIsARequest) {
    struct error e = {0};
    double retry;
    struct keys *k = keys_of("a max-requests=3\n", &e);
    ASSERT_TRUE(k != NULL);
    struct api_key *a = find(k, "a");
    EXPECT_INT_EQ(api_key_begin(a, 4, 1, 0, &retry, &e), ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(e.text, "4 answers are asked for at once, and this API key may have 3 requests "
                          "running");
    ASSERT_INT_EQ(api_key_begin(a, 2, 1, 0, &retry, &e), 0);
    EXPECT_INT_EQ(api_key_begin(a, 2, 1, 0, &retry, &e), ERR_OVERLOADED);
    EXPECT_STR_EQ(e.text, "this API key has 2 requests running, of 3 that it may have");
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, 0, &retry, &e), 0);
    api_key_end(a, 2, 0, 0);
    EXPECT_INT_EQ(api_key_begin(a, 2, 1, 0, &retry, &e), 0);
    keys_destroy(k);
}

TEST(Keys, WhatWasNotTakenCostsNothing) {
    struct error e;
    double retry;
    struct keys *k = keys_of("a tokens-per-minute=60\nb\n", &e);
    ASSERT_TRUE(k != NULL);
    struct api_key *a = find(k, "a");
    for (int i = 0; i < 5; i++) {
        ASSERT_INT_EQ(api_key_begin(a, 1, 50, 0, &retry, &e), 0);
        api_key_refund(a, 50);
        api_key_end(a, 1, 0, 0);
    }
    /* Never more than it had. */
    api_key_refund(a, 1000);
    ASSERT_INT_EQ(api_key_begin(a, 1, 60, 0, &retry, &e), 0);
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, 0, &retry, &e), ERR_OVERLOADED);
    api_key_refund(find(k, "b"), 50);
    api_key_refund(NULL, 50);
    keys_destroy(k);
}

/* 60 tokens a minute are one a second. */
TEST(Keys, TokensOfAMinuteComeBackAllTheTime) {
    struct error e;
    double retry;
    struct keys *k = keys_of("a tokens-per-minute=60\n", &e);
    ASSERT_TRUE(k != NULL);
    struct api_key *a = find(k, "a");
    int64_t now = 1000 * (int64_t)SECOND;
    ASSERT_INT_EQ(api_key_begin(a, 1, 50, now, &retry, &e), 0); /* 10 are left */
    ASSERT_INT_EQ(api_key_begin(a, 1, 30, now, &retry, &e), 0); /* overdrawn by 20 */
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, now, &retry, &e), ERR_OVERLOADED);
    EXPECT_NEAR(retry, 21, 1e-6);
    now += 10 * SECOND;
    api_key_end(a, 1, 15, now); /* overdrawn by 25 */
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, now, &retry, &e), ERR_OVERLOADED);
    EXPECT_NEAR(retry, 26, 1e-6);
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, now + 24 * SECOND, &retry, &e), ERR_OVERLOADED);
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, now + 26 * SECOND, &retry, &e), 0);
    api_key_end(a, 1, 0, now + 26 * SECOND);
    api_key_end(a, 1, 0, now + 26 * SECOND);

    /* However long it rests, the bucket holds a minute's worth and no more. */
    now += 86400 * (int64_t)SECOND;
    ASSERT_INT_EQ(api_key_begin(a, 1, 60, now, &retry, &e), 0);
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, now, &retry, &e), ERR_OVERLOADED);
    EXPECT_NEAR(retry, 1, 1e-6);
    /* A clock that steps back gives nothing away. */
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, now - 100 * SECOND, &retry, &e), ERR_OVERLOADED);
    api_key_end(a, 1, 0, now);
    keys_destroy(k);
}

TEST(Keys, ALimitMayChangeWhileRequestsRun) {
    struct error e;
    double retry;
    struct keys *k = keys_of("a\n", &e);
    ASSERT_TRUE(k != NULL);
    struct api_key *a = find(k, "a");
    ASSERT_INT_EQ(api_key_begin(a, 1, 1000000, SECOND, &retry, &e), 0);
    write_keys("a tokens-per-minute=60\n", 23);
    ASSERT_INT_EQ(keys_reload(k, &e), 0);
    ASSERT_INT_EQ(api_key_begin(a, 1, 60, SECOND, &retry, &e), 0);
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, SECOND, &retry, &e), ERR_OVERLOADED);
    write_keys("a\n", 2);
    ASSERT_INT_EQ(keys_reload(k, &e), 0);
    EXPECT_INT_EQ(api_key_begin(a, 1, 1, SECOND, &retry, &e), 0);
    for (int i = 0; i < 3; i++)
        api_key_end(a, 1, 10, SECOND);
    keys_destroy(k);
}

TEST(Keys, ThereMayBe4096) {
    char *text = malloc(4098 * 12), *p = text;
    struct error e;
    for (int i = 0; i < 4096; i++)
        p += sprintf(p, "sk-%d\n", i);
    struct keys *k = keys_of(text, &e);
    ASSERT_TRUE(k != NULL);
    EXPECT_STR_EQ(name_of(k, "sk-4095"), "key-4096");
    EXPECT_STR_EQ(name_of(k, "sk-0"), "key-1");
    EXPECT_STR_EQ(name_of(k, "sk-4096"), "(none)");
    keys_destroy(k);
    sprintf(p, "sk-4096\n");
    EXPECT_TRUE(keys_of(text, &e) == NULL);
    EXPECT_TRUE(strstr(e.text, ":4097: there are more than 4096 keys") != NULL);
    free(text);
}

/* What is logged to standard error while a file of this mode is read. */
static void read_with_mode(mode_t mode, char *said, size_t size) {
    struct keys_options o = {.file = key_file()};
    struct keys *k;
    struct error e = {0};
    int fds[2], old = dup(STDERR_FILENO);
    ASSERT_INT_EQ(pipe(fds), 0);
    dup2(fds[1], STDERR_FILENO);
    write_keys("a\n", 2);
    chmod(key_file(), mode);
    keys_create(&o, &k, &e);
    keys_destroy(k);
    dup2(old, STDERR_FILENO);
    close(old);
    close(fds[1]);
    ssize_t n = read(fds[0], said, size - 1);
    said[n > 0 ? n : 0] = '\0';
    close(fds[0]);
}

TEST(Keys, AFileThatOthersMayReadIsWarnedOf) {
    char said[512];
    read_with_mode(0600, said, sizeof said);
    EXPECT_STR_EQ(said, "");
    read_with_mode(0640, said, sizeof said);
    EXPECT_STR_EQ(said, "");
    read_with_mode(0644, said, sizeof said);
    EXPECT_TRUE(strstr(said, "warning: ") && strstr(said, "may read it"));
    read_with_mode(0602, said, sizeof said);
    EXPECT_TRUE(strstr(said, "may change it") != NULL);
}
