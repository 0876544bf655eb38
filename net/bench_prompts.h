/* bench_prompts: the requests of a load run, built before it starts.
 *
 * Prompts are token ids of exactly the wanted lengths. For text, the server's own tokenizer is
 * asked; what it puts before every text (a beginning-of-text token) stands at the start of each
 * prompt.
 */
#pragma once

#include <stdint.h>

#include "host/error.h"
#include "net/bench_client.h"
#include "net/bench_report.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the server says about its model. */
struct bench_model {
    char *name; /* owned */
    int32_t max_model_len, vocab_size;
};

int bench_model_query(struct bench_client *client, struct bench_model *out, struct error *error);

/* Requests and room for their results. Start it zeroed; bench_prompts_deinit in any state. */
struct bench_prompts {
    struct bench_item *items;     /* [count] owned, their lines too */
    struct bench_record *records; /* [count] owned */
    int32_t count;
};

enum bench_series { BENCH_MEASURED, BENCH_WARMUP };

/* Builds `count` requests: those of the two series share the prefix and nothing else. Measured
 * requests arrive at the settings' rate, those of the warm-up at once. */
int bench_prompts_build(struct bench_client *client, const struct bench_settings *settings,
                        const struct bench_model *model, enum bench_series series, int32_t count,
                        struct bench_prompts *out, struct error *error);
void bench_prompts_deinit(struct bench_prompts *p);

#ifdef __cplusplus
}
#endif
