/* Which bodies are worked on by the loop itself. */
#include <string.h>

#include "net/openai_job.h"
#include "net/prompt.h"
#include "tests/shim.h"

TEST(OpenaiJob, BodiesWithSchemasAreNotShort) {
    static const struct {
        const char *body;
        bool is_short;
    } cases[] = {
        {"", true},
        {"{\"prompt\":\"a\"}", true},
        {"{\"prompt\":\"caf\\u00e9\",\"response_format\":{\"type\":\"json_object\"}}", true},
        {"{\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{}}}}", false},
        {"{\"response_format\":{\"type\":\"json_\\u0073chema\"}}", false},
        {"{\"t\\u006fols\":[],\"tool_choice\":\"required\"}", false},
        {"{\"tools\":[],\"tool_choice\":\"required\"}", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct openai_job job = {0};
        buffer_puts(&job.body, cases[i].body);
        if (openai_job_is_short(&job) != cases[i].is_short)
            FAIL("%s is%s short", cases[i].body, cases[i].is_short ? " not" : "");
        openai_job_deinit(&job);
    }
    struct openai_job large = {0};
    while (large.body.len <= PROMPT_INLINE_BYTES)
        buffer_putc(&large.body, ' ');
    EXPECT_FALSE(openai_job_is_short(&large));
    openai_job_deinit(&large);
}
