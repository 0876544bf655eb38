#include "tests/answers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/shim.h"

void answers_ask(struct net_client *c, struct answers *a, int32_t max_tokens) {
    memset(a, 0, sizeof *a);
    a->max_tokens = max_tokens;
    for (int32_t i = 0; i < ANSWERS; i++) {
        char line[256];
        snprintf(line, sizeof line,
                 "{\"id\":%d,\"prompt\":\"%.*s\",\"max_tokens\":%d,\"ignore_eos\":true,"
                 "\"temperature\":0}",
                 i + 1, 4 + 9 * i, "Once upon a time there was a little cat that", max_tokens);
        net_client_puts(c, line);
    }
}

static void take_line(struct answers *a, json_t *line) {
    int32_t id = (int32_t)json_integer_value(json_object_get(line, "id"));
    json_t *token = json_object_get(line, "token"), *error = json_object_get(line, "error");
    if (id < 1 || id > ANSWERS) {
        FAIL("a line of request %d", id);
        return;
    }
    if (token && a->count[id - 1] < ANSWER_TOKENS)
        a->tokens[id - 1][a->count[id - 1]++] = (int32_t)json_integer_value(token);
    a->done[id - 1] |= json_object_get(line, "done") != NULL;
    if (error) {
        a->error[id - 1] = true;
        EXPECT_STR_EQ(net_error_code(line), "internal");
        snprintf(a->message, sizeof a->message, "%s",
                 json_string_value(json_object_get(error, "message")));
    }
}

void answers_read(struct net_client *c, struct answers *a, int32_t tokens) {
    for (int32_t ended = 0, have = 0; ended < ANSWERS && have < tokens;) {
        json_t *line = net_client_json(c);
        if (!line)
            return;
        take_line(a, line);
        json_decref(line);
        ended = have = 0;
        for (int32_t i = 0; i < ANSWERS; i++) {
            ended += a->done[i] || a->error[i];
            have += a->count[i];
        }
    }
}

void answers_finish(struct net_client *c, struct answers *a) {
    answers_read(c, a, INT32_MAX);
}

void answers_check(const struct answers *got, const struct answers *want, const char *what) {
    for (int32_t i = 0; i < ANSWERS; i++) {
        if (memcmp(got->tokens[i], want->tokens[i], (size_t)got->count[i] * sizeof(int32_t)) != 0)
            FAIL("%s: request %d got a wrong token", what, i + 1);
        if (got->done[i] && got->count[i] != got->max_tokens)
            FAIL("%s: request %d ended after %d of %d tokens", what, i + 1, got->count[i],
                 got->max_tokens);
    }
}

void answers_check_ended(const struct answers *got, const char *what) {
    for (int32_t i = 0; i < ANSWERS; i++)
        if (!got->done[i] && !got->error[i])
            FAIL("%s: request %d was not answered", what, i + 1);
}

int32_t answers_done(const struct answers *a) {
    int32_t n = 0;
    for (int32_t i = 0; i < ANSWERS; i++)
        n += a->done[i];
    return n;
}

int32_t answers_random(int32_t n) {
    static bool seeded;
    if (!seeded) {
        const char *given = getenv("OPS_TEST_SEED");
        unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
        printf("    moments of disturbances are drawn from OPS_TEST_SEED=%u\n", seed);
        srand(seed);
        seeded = true;
    }
    return (int32_t)((unsigned)rand() % (unsigned)n);
}
