/* Keys on the line protocol: for whom a prompt counts, and how long a key holds. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/keys.h"
#include "net/line_job.h"
#include "tests/net_client.h"
#include "tests/program.h"
#include "tests/shim.h"

#define AUTH(key) "{\"op\":\"auth\",\"key\":\"" key "\",\"id\":0}"

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

/* Plain prompts wait for their turn; until then the connection may show another key, or a bad one.
 */
TEST(LineKeys, APromptCountsForTheKeyThatWasShownBeforeIt) {
    enum { PROMPTS = 12 };
    static const char *const texts[] = {"first-key-0123456789", "second-key-0123456789"};
    static const char *const then[] = {AUTH("no-key"), AUTH("second-key-0123456789")};
    const struct keys_options o = {.texts = texts, .num_texts = 2, .tokens_per_minute = 10};
    for (size_t i = 0; i < sizeof then / sizeof *then; i++) {
        struct net_fixture f;
        struct net_client c;
        struct keys *keys;
        ASSERT_INT_EQ(keys_create(&o, &keys, NULL), 0);
        net_fixture_init(&f);
        f.options.keys = keys;
        ASSERT_TRUE(net_fixture_start(&f));
        ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
        net_client_puts(&c, AUTH("first-key-0123456789"));
        for (int k = 0; k < PROMPTS; k++)
            net_client_puts(&c, "Once upon a time");
        net_client_puts(&c, then[i]);
        net_client_shut(&c);
        const char *all = net_client_rest(&c);
        /* A story has more than 10 tokens: the key may begin one a minute. */
        EXPECT_INT_EQ(count(all, "error: this API key has used its 10 tokens a minute"),
                      PROMPTS - 1);
        net_client_close(&c);
        net_fixture_stop(&f);
        keys_destroy(keys);
    }
}

/* Of a stranger's line nothing is done but to see whether it shows a key. */
TEST(LineKeys, NoWorkIsDoneForStrangers) {
    static const char *const lines[] = {"Once upon", "{\"prompt\":\"Once upon\"}",
                                        "{\"op\":\"tokenize\",\"text\":\"Once upon\"}",
                                        "{\"op\":\"detokenize\",\"tokens\":[5]}", AUTH("a-key")};
    struct net_fixture f;
    net_fixture_init(&f);
    ASSERT_TRUE(net_fixture_start(&f));
    const struct line_context context = {.defaults = &f.options.defaults, .vocab_size = 1536};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        for (int stranger = 0; stranger < 2; stranger++) {
            struct line_job job = {.line = lines[i],
                                   .len = strlen(lines[i]),
                                   .dispatch = f.dispatch,
                                   .context = &context,
                                   .only_auth = stranger};
            line_job_run(&job);
            bool made = job.answer.len > 0 ||
                        (job.request.kind != LINE_DETOKENIZE && job.request.params.num_tokens > 0);
            EXPECT_INT_EQ(job.error.code, 0);
            if (!EXPECT_INT_EQ(made, !stranger || job.request.kind == LINE_AUTH))
                FAIL("of %s", lines[i]);
            line_job_deinit(&job);
        }
    net_fixture_stop(&f);
}

static void write_key(const char *path, const char *key) {
    FILE *f = fopen(path, "w");
    fprintf(f, "%s\n", key);
    fclose(f);
}

/* Also on connections that have shown it long ago, and not for requests alone. */
TEST(LineKeys, AKeyThatAReloadTakesAwayHoldsNoLonger) {
    NEEDS_BINARY();
    struct program p;
    struct net_client c;
    char path[256];
    const char *const args[] = {"-q", "--listen", "127.0.0.1:0", "--api-key-file", path, NULL};
    bool refused = false;
    snprintf(path, sizeof path, "%s/line-keys", shim_scratch_dir());
    write_key(path, "old");
    ASSERT_TRUE(program_serve(&p, &c, args));
    net_client_puts(&c, AUTH("old"));
    EXPECT_STR_EQ(net_client_line(&c), "{\"id\":0,\"ok\":true}");
    EXPECT_TRUE(net_client_ping(&c));
    write_key(path, "new");
    kill(p.pid, SIGHUP);
    for (int i = 0; i < 1000 && !refused; i++) {
        net_client_puts(&c, "{\"op\":\"model\"}");
        json_t *answer = net_client_json(&c);
        refused = !strcmp(net_error_code(answer), "unauthorized");
        json_decref(answer);
        usleep(10000);
    }
    EXPECT_TRUE(refused);
    net_client_puts(&c, AUTH("new"));
    EXPECT_STR_EQ(net_client_line(&c), "{\"id\":0,\"ok\":true}");
    EXPECT_TRUE(net_client_ping(&c));
    kill(p.pid, SIGTERM);
    EXPECT_INT_EQ(program_wait(&p), 0);
    net_client_close(&c);
}

/* One request runs, one waits, and there is room for no more. */
TEST(LineKeys, WhatTheQueueRefusesIsNotCharged) {
    static const char *const texts[] = {"first-key-0123456789"};
    const struct keys_options o = {.texts = texts, .num_texts = 1, .tokens_per_minute = 12};
    struct net_fixture f;
    struct net_client c;
    struct keys *keys;
    ASSERT_INT_EQ(keys_create(&o, &keys, NULL), 0);
    net_fixture_init(&f);
    f.options.keys = keys;
    f.engine_options.max_num_seqs = 1;
    f.engine_options.max_queued_requests = 1;
    ASSERT_TRUE(net_fixture_start(&f));
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&f), 0));
    net_client_puts(&c, AUTH("first-key-0123456789"));
    EXPECT_STR_EQ(net_client_line(&c), "{\"id\":0,\"ok\":true}");
    for (int i = 0; i < 2; i++) {
        net_client_puts(&c, "{\"prompt\":\"a\",\"max_tokens\":1500,\"ignore_eos\":true}");
        struct engine_stats stats;
        do { /* each is where it belongs before the next */
            usleep(1000);
            net_fixture_stats(&f, &stats);
        } while ((i ? stats.waiting : stats.running) != 1);
    }
    for (int i = 0; i < 5; i++) {
        net_client_puts(&c, "{\"id\":7,\"prompt\":\"Once upon a time\"}");
        json_t *end = net_client_until_done(&c, "7", NULL);
        const json_t *error = json_object_get(end, "error");
        const char *text = json_string_value(json_object_get(error, "message"));
        if (!EXPECT_TRUE(text && strstr(text, "waiting already")))
            FAIL("request %d: %s", i, text ? text : "");
        json_decref(end);
    }
    net_client_close(&c);
    net_fixture_stop(&f);
    keys_destroy(keys);
}
