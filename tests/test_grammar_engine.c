/* Grammars and logit_bias in the engine: the demo model at a temperature at which it writes
 * nonsense, which must still be documents. */
#include <stdlib.h>
#include <string.h>

#include "host/grammar.h"
#include "host/mem.h"
#include "host/tokenizer_internal.h"
#include "tests/engine_fixture.h"
#include "tests/engine_rig.h"
#include "tests/grammar_fixture.h"
#include "tests/shim.h"

static const char *const schemas[] = {
    "{'type':'object','properties':{'sum':{'type':'integer','minimum':0,'maximum':200},'name':{"
    "'type':'string','maxLength':10},'ok':{'type':'boolean'}},'required':['sum','ok'],"
    "'additionalProperties':false}",
    "{'enum':['red','green',12,null]}",
    "{'type':'array','items':{'type':'number','minimum':0,'maximum':1},'minItems':1,'maxItems':4}",
    "{'type':'string','pattern':'^[a-z]{2,6}-\\\\d{2}$'}",
    "{'type':'object'}",
    "{'type':'string','format':'date-time'}",
};
enum { NUM_SCHEMAS = sizeof schemas / sizeof *schemas, ROUNDS = 6, NUM = NUM_SCHEMAS * ROUNDS };

static struct request_params params_for(struct grammar *g, uint64_t seed) {
    struct request_params p;
    request_params_default(&p);
    p.max_tokens = 120;
    p.sampling.temperature = 1.5f;
    p.sampling.seed = seed;
    p.has_seed = true;
    p.grammar = g;
    return p;
}

/* A whole document when the request stopped, the beginning of one when it ran out of tokens. */
static void check_text(struct grammar_pool *bytes, struct grammar *g,
                       const struct fixture_result *r) {
    size_t len = strlen(r->text.data);
    int64_t n = grammar_take(bytes, g, r->text.data, len);
    EXPECT_INT_EQ(r->error_code, 0);
    if (r->finish_reason == FINISH_STOP ? n != -1 : n >= 0 && n < (int64_t)len - 3)
        FAIL("%s after %d tokens: %s", finish_reason_name(r->finish_reason), r->num_tokens,
             r->text.data);
}

static void submit_all(struct fixture *f, struct grammar **g) {
    for (int i = 0; i < NUM; i++) {
        struct request_params p = params_for(g[i % NUM_SCHEMAS], (uint64_t)i);
        if (i / NUM_SCHEMAS == 1)
            p.sampling.temperature = 0;
        if (i / NUM_SCHEMAS == 2)
            p.sampling.top_k = 1;
        if (i / NUM_SCHEMAS == 3)
            p.min_tokens = 60;
        if (i / NUM_SCHEMAS == 4)
            p.ignore_eos = true;
        if (i / NUM_SCHEMAS == 5)
            p.sampling.repetition_penalty = 1.4f;
        fixture_submit(f, "27+15=", &p);
    }
    fixture_wait(f);
}

TEST(GrammarEngine, WhatComesOutIsADocument) {
    struct fixture f;
    struct grammar *g[NUM_SCHEMAS];
    struct grammar_pool *bytes = byte_pool();
    int32_t whole = 0;
    for (int i = 0; i < NUM_SCHEMAS; i++)
        g[i] = grammar_from(schemas[i]);
    if (fixture_open(&f, NULL)) {
        submit_all(&f, g);
        for (int i = 0; i < NUM; i++) {
            check_text(bytes, g[i % NUM_SCHEMAS], &f.result[i]);
            whole += f.result[i].finish_reason == FINISH_STOP;
            if (i % NUM_SCHEMAS < 4) /* those are short */
                EXPECT_INT_EQ(f.result[i].finish_reason, FINISH_STOP);
        }
        EXPECT_INT_GE(whole, NUM_SCHEMAS * 4);
        fixture_close(&f);
    }
    for (int i = 0; i < NUM_SCHEMAS; i++)
        grammar_release(g[i]);
    grammar_pool_destroy(bytes);
}

/* So few blocks that requests are preempted all the time and computed again. */
TEST(GrammarEngine, PreemptionChangesNothing) {
    struct fixture f, tight;
    struct grammar *g[NUM_SCHEMAS];
    struct engine_options o;
    struct engine_stats stats;
    fixture_options(&o);
    o.num_kv_blocks = 12;
    o.max_model_len = 160;
    for (int i = 0; i < NUM_SCHEMAS; i++)
        g[i] = grammar_from(schemas[i]);
    if (fixture_open(&f, NULL) && fixture_open(&tight, &o)) {
        submit_all(&f, g);
        submit_all(&tight, g);
        engine_stats(tight.engine, &stats);
        EXPECT_INT_GT(stats.preemptions_total, 0);
        for (int i = 0; i < NUM; i++)
            EXPECT_STR_EQ(f.result[i].text.data, tight.result[i].text.data);
        fixture_close(&f);
        fixture_close(&tight);
    }
    for (int i = 0; i < NUM_SCHEMAS; i++)
        grammar_release(g[i]);
}

/* A document that ends for certain ends without eos, and by "stop" even with its last token. */
TEST(GrammarEngine, EndsWithTheDocument) {
    struct fixture f;
    struct grammar *g = grammar_from("{'const':true}");
    if (fixture_open(&f, NULL)) {
        struct request_params p = params_for(g, 1);
        p.min_tokens = 50;
        p.ignore_eos = true;
        fixture_submit(&f, "a", &p);
        fixture_wait(&f);
        EXPECT_STR_EQ(f.result[0].text.data, "true");
        EXPECT_INT_EQ(f.result[0].finish_reason, FINISH_STOP);
        int32_t tokens = f.result[0].num_tokens;
        EXPECT_INT_LE(tokens, 4);
        for (int32_t most = 1; most <= tokens; most++) {
            p.max_tokens = most;
            p.min_tokens = 0;
            int32_t r = fixture_submit(&f, "a", &p);
            fixture_wait(&f);
            EXPECT_INT_EQ(f.result[r].finish_reason, most < tokens ? FINISH_LENGTH : FINISH_STOP);
        }
        fixture_close(&f);
    }
    grammar_release(g);
}

/* Biases of 100 draw any token but those that the grammar forbids. */
TEST(GrammarEngine, BiasesMoveTokensButNotTheGrammar) {
    struct fixture f;
    struct grammar *g = grammar_from("{'enum':['red','green']}");
    struct token_list a = {0};
    if (fixture_open(&f, NULL)) {
        tokenizer_encode(engine_tokenizer(f.engine), "A", 1, 0, &a);
        struct logit_bias bias = {a.ids[a.len - 1], 100};
        struct request_params p = params_for(NULL, 1);
        p.max_tokens = 6;
        p.ignore_eos = true;
        p.logit_bias = &bias;
        p.num_logit_bias = 1;
        fixture_submit(&f, "27+15=", &p);
        p.grammar = g;
        p.max_tokens = 30;
        fixture_submit(&f, "27+15=", &p);
        fixture_wait(&f);
        for (int i = 0; i < 6; i++)
            EXPECT_INT_EQ(f.result[0].tokens[i], bias.token);
        EXPECT_TRUE(!strcmp(f.result[1].text.data, "\"red\"") ||
                    !strcmp(f.result[1].text.data, "\"green\""));
        fixture_reset(&f);
        bias.bias = -100;
        p.grammar = NULL;
        p.sampling.temperature = 0;
        fixture_submit(&f, "AAAAAAAAAA", &p);
        fixture_wait(&f);
        for (int32_t i = 0; i < f.result[0].num_tokens; i++)
            EXPECT_INT_NE(f.result[0].tokens[i], bias.token);
        fixture_close(&f);
    }
    free(a.ids);
    grammar_release(g);
}

TEST(GrammarEngine, BadBiasesAreRefused) {
    struct logit_bias many[MAX_LOGIT_BIASES + 1] = {{0}};
    struct fixture f;
    struct request_params p;
    struct error e = {0};
    int32_t token = 1;
    request_params_default(&p);
    p.tokens = &token;
    p.num_tokens = 1;
    p.logit_bias = many;
    if (!fixture_open(&f, NULL))
        return;
    for (int i = 0; i <= MAX_LOGIT_BIASES; i++)
        many[i].token = i;
    p.num_logit_bias = MAX_LOGIT_BIASES;
    EXPECT_INT_EQ(engine_check(f.engine, &p, &e), 0);
    p.num_logit_bias++;
    EXPECT_INT_EQ(engine_check(f.engine, &p, &e), ERR_INVALID_REQUEST);
    p.num_logit_bias = 2;
    many[1].token = 0;
    EXPECT_INT_EQ(engine_check(f.engine, &p, &e), ERR_INVALID_REQUEST);
    EXPECT_STR_EQ(e.text, "logit_bias: token 0 is given twice");
    many[1] = (struct logit_bias){1, 100.5f};
    EXPECT_INT_EQ(engine_check(f.engine, &p, &e), ERR_INVALID_REQUEST);
    many[1] = (struct logit_bias){100000, 1};
    EXPECT_INT_EQ(engine_check(f.engine, &p, &e), ERR_INVALID_REQUEST);
    many[1] = (struct logit_bias){-1, 1};
    EXPECT_INT_EQ(engine_check(f.engine, &p, &e), ERR_INVALID_REQUEST);
    fixture_close(&f);
}

/* A schema whose masks take too long ends that request alone, in words for its client. */
TEST(GrammarEngine, ACostlySchemaIsRefused) {
    struct buffer schema = {0};
    struct fixture f;
    buffer_puts(&schema, "{'anyOf':[{'pattern':'^[^,]*e[^,]{9}$'}");
    for (char c = 'a'; c <= 'z'; c++)
        buffer_printf(&schema, ",{'pattern':'^[^,]*%c[^,]{8}$'}", c);
    buffer_puts(&schema, "]}");
    buffer_putc(&schema, 0);
    struct grammar *costly = grammar_from(schema.data), *plain = grammar_from(schemas[1]);
    if (fixture_open(&f, NULL)) {
        struct request_params p = params_for(costly, 1);
        fixture_submit(&f, "27+15=", &p);
        p = params_for(plain, 1);
        fixture_submit(&f, "27+15=", &p);
        fixture_wait(&f);
        EXPECT_INT_EQ(f.result[0].error_code, ERR_INVALID_REQUEST);
        EXPECT_INT_EQ(f.result[1].error_code, 0);
        EXPECT_INT_EQ(f.result[1].finish_reason, FINISH_STOP);
        fixture_close(&f);
    }
    grammar_release(costly);
    grammar_release(plain);
    buffer_deinit(&schema);
}

/* A vocabulary of "[", "1" and "x" can begin an array but not end it, and no string at all. */
TEST(GrammarEngine, AVocabularyThatCannotSpellItIsAnError) {
    static const char text[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"[\":0,\"1\":1,\"x\":2},"
                               "\"merges\":[]},\"pre_tokenizer\":{\"type\":\"ByteLevel\"},"
                               "\"decoder\":{\"type\":\"ByteLevel\"}}";
    static const char *const cases[] = {"{'type':'string'}", "{'type':'array','maxItems':0}"};
    const struct tokenizer_config none = {0};
    struct tokenizer *t = NULL;
    struct engine_options o;
    struct error e = {0};
    struct rig r;
    if (tokenizer_load_json_text(text, strlen(text), "tiny", &none, &t, &e))
        FAIL("%s", e.text);
    ASSERT_TRUE(t != NULL);
    rig_options(&o);
    rig_open_with(&r, &o, 3, 32, -1, t);
    for (int i = 0; i < 2; i++) {
        struct client *c = rig_client(&r, 0, 2, 8);
        c->params.grammar = grammar_from(cases[i]);
        EXPECT_INT_EQ(rig_submit(&r, c), 0);
        rig_run(&r);
        EXPECT_INT_EQ(c->error_code, ERR_INTERNAL);
        EXPECT_INT_EQ(c->num_tokens, i);
    }
    struct client *c = rig_client(&r, 0, 2, 4);
    EXPECT_INT_EQ(rig_submit(&r, c), 0);
    rig_run(&r);
    EXPECT_INT_EQ(c->num_tokens, 4);
    rig_close(&r);
}
