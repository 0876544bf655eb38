/* The text of answers: the engine with a fake model and the demo model's tokenizer. */
#include <string.h>

#include "host/error.h"
#include "host/stop.h"
#include "tests/engine_rig.h"
#include "tests/shim.h"

static struct tokenizer *demo_tokenizer(void) {
    struct tokenizer *t = NULL;
    struct error error = {0};
    if (tokenizer_load("configs/demo-moe", &t, &error) != 0)
        FAIL("tokenizer: %s", error.text);
    return t;
}

/* The full text of a client's tokens, NUL-terminated. */
static void decode(const struct tokenizer *t, const struct client *c, struct buffer *out) {
    buffer_clear(out);
    tokenizer_decode(t, c->tokens, (size_t)c->num_tokens, false, out);
    buffer_putc(out, 0);
}

TEST(Engine, TheTextOfAllEventsIsTheDecodedAnswer) {
    struct rig r;
    struct engine_options o;
    struct buffer want = {0};
    struct tokenizer *t = demo_tokenizer();
    ASSERT_TRUE(t != NULL);
    rig_options(&o);
    rig_open_with(&r, &o, RIG_TEXT_VOCAB, 64, -1, t);
    for (int32_t i = 0; i < 24; i++) {
        struct client *c = rig_client(&r, 30 * i, 10, 60);
        c->params.ignore_eos = true;
        rig_submit(&r, c);
    }
    rig_run(&r);
    for (int32_t i = 0; i < 24; i++) {
        decode(t, &r.clients[i], &want);
        EXPECT_INT_EQ(r.clients[i].text.len, want.len - 1);
        EXPECT_MEM_EQ(r.clients[i].text.data, want.data, want.len - 1);
    }
    buffer_deinit(&want);
    rig_close(&r);
}

/* A special token is shown to the requests that ask for it. */
TEST(Engine, ARequestCanKeepASpecialTokenInItsText) {
    enum { KEPT = 1 };
    struct rig r;
    struct engine_options o;
    struct buffer want = {0};
    int32_t shown = 0;
    struct tokenizer *t = demo_tokenizer();
    ASSERT_TRUE(t != NULL);
    rig_options(&o);
    rig_open_with(&r, &o, RIG_TEXT_VOCAB, 64, -1, t);
    for (int32_t i = 0; i < 120; i++) {
        struct client *c = rig_client(&r, 11 * i, 10, 60);
        c->params.ignore_eos = true;
        c->params.kept_token = i % 4 ? KEPT : -1;
        rig_submit(&r, c);
    }
    rig_run(&r);
    for (int32_t i = 0; i < 120; i++) {
        const struct client *c = &r.clients[i];
        struct detok d;
        buffer_clear(&want);
        detok_init(&d, t);
        for (int32_t k = 0; k < c->num_tokens; k++)
            if (c->tokens[k] == KEPT && i % 4) {
                buffer_puts(&want, "<|im_start|>");
                shown++;
            } else {
                detok_push(&d, c->tokens[k], &want);
            }
        detok_flush(&d, &want);
        EXPECT_INT_EQ(c->text.len, want.len);
        EXPECT_MEM_EQ(c->text.data, want.data, want.len);
    }
    EXPECT_INT_GT(shown, 0);
    buffer_deinit(&want);
    rig_close(&r);
}

/* Where the text is cut: before the stop string whose end comes first. */
static size_t cut_at(const char *text, char *const *stops, int32_t num_stops) {
    size_t best_end = SIZE_MAX, best = strlen(text);
    for (int32_t i = 0; i < num_stops; i++) {
        const char *at = strstr(text, stops[i]);
        if (!at)
            continue;
        size_t start = (size_t)(at - text), end = start + strlen(stops[i]);
        if (end < best_end || (end == best_end && start < best)) {
            best_end = end;
            best = start;
        }
    }
    return best;
}

TEST(Stop, CutsAtTheFirstStopStringHoweverTheTextIsSplit) {
    /* Texts of a and b, so that stop strings overlap themselves and each other. Nothing past the
     * cut is ever let out, and nothing is held back that no stop string begins with. */
    char stops[3][8], text[48];
    char *list[3] = {stops[0], stops[1], stops[2]};
    uint64_t rng = 29;
    for (int32_t round = 0; round < 20000 && !shim_failed(); round++) {
        struct stop_matcher m;
        struct buffer out = {0};
        int32_t num_stops = fake_below(&rng, 4), len = fake_below(&rng, 40);
        for (int32_t i = 0; i < num_stops; i++) {
            int32_t n = 1 + fake_below(&rng, 6);
            for (int32_t j = 0; j < n; j++)
                stops[i][j] = (char)('a' + fake_below(&rng, 2));
            stops[i][n] = 0;
        }
        for (int32_t j = 0; j < len; j++)
            text[j] = (char)('a' + fake_below(&rng, 2));
        text[len] = 0;
        size_t cut = cut_at(text, list, num_stops);
        bool found = false;
        stop_init(&m, list, num_stops);
        for (int32_t at = 0; at < len && !found;) {
            int32_t n = fake_below(&rng, len - at + 1);
            found = stop_push(&m, text + at, (size_t)n, true, &out);
            at += n;
            for (size_t k = 0; k < m.held.len; k++)
                EXPECT_TRUE(m.held.data[k] == text[(size_t)at - m.held.len + k]);
            EXPECT_INT_LT(m.held.len, m.longest ? m.longest : 1);
        }
        if (!found)
            stop_flush(&m, &out);
        EXPECT_INT_EQ(found, cut < (size_t)len);
        EXPECT_INT_EQ(out.len, cut);
        EXPECT_MEM_EQ(out.data, text, cut);
        stop_deinit(&m);
        buffer_deinit(&out);
    }
}

TEST(Engine, StopStringsCutTheTextWhereverTheTokensEnd) {
    /* Stop strings are pieces of 1 to 12 bytes of the answer without them, so that they begin and
     * end within tokens; and some that never occur, which hold text back in vain. */
    static char stops[100][2][16];
    struct rig r;
    struct engine_options o;
    struct buffer full = {0};
    uint64_t rng = 23;
    int32_t stopped = 0, never = 0;
    struct tokenizer *t = demo_tokenizer();
    ASSERT_TRUE(t != NULL);
    rig_options(&o);
    rig_open_with(&r, &o, RIG_TEXT_VOCAB, 64, -1, t);
    struct client *reference = rig_client(&r, 3, 10, 80);
    reference->params.ignore_eos = true;
    rig_submit(&r, reference);
    rig_run(&r);
    decode(t, reference, &full);
    /* The last two characters are held back until the end, and come then. */
    char never_whole[] = {full.data[full.len - 3], full.data[full.len - 2], 1, 0};
    struct client *held = rig_client(&r, 3, 10, 80);
    held->params.ignore_eos = true;
    held->params.num_stop = 1;
    held->params.stop[0] = never_whole;
    rig_submit(&r, held);
    rig_run(&r);
    EXPECT_INT_EQ(held->text.len, full.len - 1);
    for (int32_t i = 0; i < 100; i++) {
        struct client *c = rig_client(&r, 3, 10, 80);
        c->params.ignore_eos = true;
        c->params.num_stop = 2;
        for (int32_t j = 0; j < 2; j++) {
            int32_t len = 1 + fake_below(&rng, 12), at = fake_below(&rng, (int32_t)full.len - 13);
            memcpy(stops[i][j], full.data + at, (size_t)len);
            if (fake_below(&rng, 3) == 0)
                stops[i][j][len - 1] = '\1';
            c->params.stop[j] = stops[i][j];
        }
        rig_submit(&r, c);
    }
    rig_run(&r);
    for (int32_t i = 2; i < r.num_clients; i++) {
        struct client *c = &r.clients[i];
        size_t cut = cut_at(full.data, c->params.stop, 2);
        EXPECT_INT_EQ(c->text.len, cut);
        EXPECT_MEM_EQ(c->text.data, full.data, cut);
        bool found = cut < full.len - 1;
        EXPECT_INT_EQ(c->done.finish_reason, found ? FINISH_STOP : FINISH_LENGTH);
        stopped += found;
        never += !found;
    }
    EXPECT_INT_GT(stopped, 20);
    EXPECT_INT_GT(never, 5);
    buffer_deinit(&full);
    rig_close(&r);
}

TEST(Stop, AStringMayBeginTooEarlyButNotEndThere) {
    char *list[] = {"was a", "there"};
    struct stop_matcher m;
    struct buffer out = {0};
    stop_init(&m, list, 2);
    EXPECT_FALSE(stop_push(&m, ", there", 7, false, &out)); /* too early: text like any other */
    EXPECT_FALSE(stop_push(&m, " was", 4, false, &out));
    EXPECT_TRUE(stop_push(&m, " a little", 9, true, &out));
    EXPECT_INT_EQ(out.len, 8);
    EXPECT_MEM_EQ(out.data, ", there ", 8);
    stop_deinit(&m);
    buffer_deinit(&out);
}

TEST(Engine, NoStopStringIsSeenBeforeMinTokens) {
    struct rig r;
    struct engine_options o;
    struct tokenizer *t = demo_tokenizer();
    char stop[8] = {0};
    ASSERT_TRUE(t != NULL);
    rig_options(&o);
    rig_open_with(&r, &o, RIG_TEXT_VOCAB, 64, -1, t);
    struct client *reference = rig_client(&r, 3, 10, 40);
    reference->params.ignore_eos = true;
    rig_submit(&r, reference);
    rig_run(&r);
    stop[0] = reference->text.data[0];
    struct client *early = rig_client(&r, 3, 10, 40), *late = rig_client(&r, 3, 10, 40);
    early->params.ignore_eos = late->params.ignore_eos = true;
    early->params.num_stop = late->params.num_stop = 1;
    early->params.stop[0] = late->params.stop[0] = stop;
    late->params.min_tokens = 40;
    rig_submit(&r, early);
    rig_submit(&r, late);
    rig_run(&r);
    EXPECT_INT_EQ(early->text.len, 0);
    EXPECT_INT_EQ(early->done.finish_reason, FINISH_STOP);
    EXPECT_INT_EQ(late->num_tokens, 40);
    EXPECT_INT_EQ(late->text.len, reference->text.len);
    rig_close(&r);
}
