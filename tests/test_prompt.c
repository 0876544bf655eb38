/* Chat requests as the server encodes them. The model is the demo model, whose <|im_start|> (token
 * 1) is spelled [TOOL_CALLS] here, as Mistral's special token. */
#include "net/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/file.h"
#include "tests/shim.h"

/* Copies a file of the demo model to dir, one string replaced by another throughout. */
static void copy_renamed(const char *dir, const char *name, const char *from, const char *to) {
    char *source = path_join("configs/demo-moe", name), *target = path_join(dir, name), *text;
    size_t len;
    struct error error = {0};
    ASSERT_INT_EQ(file_read(source, 1 << 24, &text, &len, &error), 0);
    FILE *f = fopen(target, "w");
    ASSERT_TRUE(f != NULL);
    for (const char *p = text, *end = text + len; p < end;) {
        const char *at = memmem(p, (size_t)(end - p), from, strlen(from));
        fwrite(p, 1, (size_t)((at ? at : end) - p), f);
        if (at)
            fputs(to, f);
        p = at ? at + strlen(from) : end;
    }
    fclose(f);
    free(text);
    free(source);
    free(target);
}

static void link_file(const char *dir, const char *name) {
    char *source = path_join("configs/demo-moe", name), *target = path_join(dir, name);
    char *real = realpath(source, NULL);
    remove(target);
    EXPECT_INT_EQ(symlink(real, target), 0);
    free(real);
    free(source);
    free(target);
}

static struct dispatch *load(const char *chat_template) {
    const char *dir = shim_scratch_dir();
    struct engine_options o;
    struct dispatch *d = NULL;
    struct error error = {0};
    link_file(dir, "config.json");
    link_file(dir, "generation_config.json");
    link_file(dir, "model.safetensors");
    copy_renamed(dir, "tokenizer.json", "<|im_start|>", "[TOOL_CALLS]");
    copy_renamed(dir, "tokenizer_config.json", "<|im_start|>", "[TOOL_CALLS]");
    engine_options_default(&o);
    o.model = dir;
    o.chat_template = chat_template;
    if (dispatch_create(&o, NULL, NULL, &d, &error) != 0)
        FAIL("%s", error.text);
    return d;
}

TEST(Prompt, TheMarkOfACallIsKeptWhereThereAreTools) {
    static const struct chat_message hello = {.role = "user", .content = "Hi", .content_len = 2};
    static const struct chat_tool tool = {.name = "f"};
    static const struct {
        size_t num_tools;
        enum tool_choice choice;
        int32_t kept_token, marks;
    } cases[] = {
        {0, TOOL_CHOICE_AUTO, -1, 0},
        {1, TOOL_CHOICE_NONE, -1, 0},
        {1, TOOL_CHOICE_AUTO, 1, 0},
        {1, TOOL_CHOICE_REQUIRED, 1, 1}, /* the prompt ends in "[TOOL_CALLS] [" */
    };
    struct dispatch *d = load("mistral-v3");
    ASSERT_TRUE(d != NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct chat_request r = {.messages = &hello,
                                       .num_messages = 1,
                                       .tools = &tool,
                                       .num_tools = cases[i].num_tools,
                                       .tool_choice = cases[i].choice};
        struct request_params p;
        struct error error = {0};
        int32_t marks = 0;
        request_params_default(&p);
        EXPECT_INT_EQ(prompt_encode_chat(d, &r, &p, &error), 0);
        EXPECT_INT_EQ(p.kept_token, cases[i].kept_token);
        for (int32_t k = 0; k < p.num_tokens; k++)
            marks += p.tokens[k] == 1;
        EXPECT_INT_EQ(marks, cases[i].marks);
        request_params_deinit(&p);
    }
    dispatch_destroy(d);
}

TEST(Prompt, ToolsAreRefusedByTemplatesWithoutThem) {
    static const struct chat_message hello = {.role = "user", .content = "Hi", .content_len = 2};
    static const struct chat_tool tool = {.name = "f"};
    const struct chat_request r = {
        .messages = &hello, .num_messages = 1, .tools = &tool, .num_tools = 1};
    struct request_params p;
    struct error error = {0};
    struct dispatch *d = load("olmoe");
    ASSERT_TRUE(d != NULL);
    request_params_default(&p);
    EXPECT_INT_EQ(prompt_encode_chat(d, &r, &p, &error), ERR_INVALID_REQUEST);
    EXPECT_TRUE(strncmp(error.text, "tools: the model's chat template, olmoe, has no place", 53) ==
                0);
    request_params_deinit(&p);
    dispatch_destroy(d);
}
