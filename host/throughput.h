/* throughput: what an engine has got done in the last seconds, and what follows for those who wait.
 *
 * Steps and ends of requests are counted in slots of half a second, of which the latest 16 are
 * kept, and in totals, for when nothing was done of late. Rates are per second of steps, not of
 * time, so that a server that was idle a moment ago looks no slower than it is. One thread at a
 * time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { THROUGHPUT_SLOTS = 16, THROUGHPUT_SLOT_US = 500000 };

struct throughput {
    struct throughput_slot {
        int64_t number; /* of the slot since time 0; what it holds of another one is void */
        int64_t busy_us, tokens, ended;
    } slots[THROUGHPUT_SLOTS], total; /* the total's number means nothing */
};

struct throughput_rates {
    double tokens_per_s; /* computed in steps, of prompts and generated; 0: nothing was computed */
    double ended_per_s;  /* requests that ended by themselves, and so made room */
    int64_t num_ended;
};

/* Zeroed: nothing was done. now_us is of clock_us. */
void throughput_count_step(struct throughput *t, int64_t now_us, int64_t busy_us, int64_t tokens);
void throughput_count_end(struct throughput *t, int64_t now_us);
/* Of the last 8 seconds; of all the time that was counted. */
struct throughput_rates throughput_rates(const struct throughput *t, int64_t now_us);
struct throughput_rates throughput_all_rates(const struct throughput *t);

/* Seconds after which a refused client may try again, 1 to 60: when half of what waits has been
 * taken up. By then there are places in the queue again and the server has not run dry.
 *
 * Where requests have ended of late, one waiting request is taken up for each that ends, at the
 * rate at which they did. Where fewer than 4 have, it is the time to compute the waiting requests'
 * prompts and as many tokens as requests usually generate, at the rate of tokens. Where nothing has
 * been computed, it is 60 if something should have been, else 5: by then more is known. With nobody
 * waiting it is 1. */
struct waiting_work {
    bool stuck; /* a step, or its beginning, is overdue */
    int32_t requests;
    int64_t prompt_tokens;
    double mean_generated; /* tokens of a request so far; 0: not known */
};
int32_t throughput_retry_after_s(const struct throughput_rates *rates,
                                 const struct waiting_work *w);

#ifdef __cplusplus
}
#endif
