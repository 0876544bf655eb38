/* The bundled demo model: what a newcomer sees first. Its sums are right and its greedy tokens are
 * those of the reference implementation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/file.h"
#include "host/json.h"
#include "host/model_config.h"
#include "tests/engine_fixture.h"
#include "tests/shim.h"

enum { MAX_SUMS = 400, AT_ONCE = 50 };

/* Lines "27+15=42" of the held-out file; returns how many. */
static int32_t read_sums(char *text, char **sums) {
    int32_t n = 0;
    for (char *line = strtok(text, "\n"); line && n < MAX_SUMS; line = strtok(NULL, "\n"))
        if (strchr(line, '='))
            sums[n++] = line;
    return n;
}

TEST(Demo, AnswersHeldOutSums) {
    struct fixture f;
    char *text, *sums[MAX_SUMS];
    size_t len;
    int32_t right = 0;
    ASSERT_INT_EQ(file_read("configs/demo-moe/heldout_sums.txt", 1 << 20, &text, &len, NULL), 0);
    int32_t n = read_sums(text, sums);
    EXPECT_INT_GE(n, 200);
    if (fixture_open(&f, NULL)) {
        struct request_params p;
        char newline[] = "\n";
        request_params_default(&p);
        p.max_tokens = 8;
        p.sampling.temperature = 0;
        p.stop[0] = newline;
        p.num_stop = 1;
        for (int32_t i = 0; i < n; i += AT_ONCE) {
            int32_t end = i + AT_ONCE < n ? i + AT_ONCE : n;
            for (int32_t j = i; j < end; j++) {
                char prompt[32];
                snprintf(prompt, sizeof prompt, "%.*s", (int)(strchr(sums[j], '=') + 1 - sums[j]),
                         sums[j]);
                fixture_submit(&f, prompt, &p);
            }
            fixture_wait(&f);
            for (int32_t j = i; j < end; j++)
                right += !strcmp(f.result[j - i].text.data, strchr(sums[j], '=') + 1);
            fixture_reset(&f);
        }
        printf("    %d of %d held-out sums are right\n", right, n);
        EXPECT_INT_GE(right * 100, n * 95);
        fixture_close(&f);
    }
    free(text);
}

/* One entry of expected.json: {"text", "tokens", "greedy", "min_margin"}. */
static void check_expected(struct fixture *f, json_t *entry) {
    const char *text = json_string_value(json_object_get(entry, "text"));
    json_t *tokens = json_object_get(entry, "tokens"), *greedy = json_object_get(entry, "greedy");
    struct token_list ids = {0};
    tokenizer_encode(engine_tokenizer(f->engine), text, strlen(text),
                     TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &ids);
    EXPECT_INT_EQ(ids.len, json_array_size(tokens));
    for (size_t i = 0; i < ids.len && i < json_array_size(tokens); i++)
        EXPECT_INT_EQ(ids.ids[i], json_integer_value(json_array_get(tokens, i)));
    free(ids.ids);
    struct request_params p;
    request_params_default(&p);
    p.max_tokens = (int32_t)json_array_size(greedy);
    p.ignore_eos = true;
    p.sampling.temperature = 0;
    int32_t r = fixture_submit(f, text, &p);
    fixture_wait(f);
    for (int32_t i = 0; i < p.max_tokens; i++)
        if (f->result[r].tokens[i] != json_integer_value(json_array_get(greedy, (size_t)i))) {
            FAIL("\"%s\": greedy token %d differs", text, i);
            break;
        }
}

TEST(Demo, GreedyTokensAreThoseOfTheReference) {
    struct fixture f;
    struct engine_options o;
    struct error error = {0};
    json_t *doc = json_parse_file("configs/demo-moe/expected.json", 1 << 20, &error), *entry;
    size_t i;
    ASSERT_TRUE(doc != NULL);
    fixture_options(&o);
    o.kv_cache_dtype = "f32"; /* as the reference */
    o.cpu_isa = "avx2";
    if (fixture_open(&f, &o)) {
        EXPECT_INT_GE(json_array_size(json_object_get(doc, "prompts")), 4);
        json_array_foreach(json_object_get(doc, "prompts"), i, entry) check_expected(&f, entry);
        fixture_close(&f);
    }
    json_decref(doc);
}

TEST(Demo, IsAsSmallAsItSays) {
    struct error error = {0};
    struct model_config c;
    ASSERT_INT_EQ(model_config_load("configs/demo-moe", &c, &error), 0);
    int64_t n = model_config_parameters(&c);
    EXPECT_INT_GE(n, 3000000);
    EXPECT_INT_LE(n, 6100000);
    EXPECT_INT_EQ(c.router.num_experts, 8);
    EXPECT_INT_EQ(c.router.num_experts_per_tok, 2);
    EXPECT_INT_GE(c.max_position_embeddings, 1024);
}
