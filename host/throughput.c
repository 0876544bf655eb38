#include "host/throughput.h"

enum { ENOUGH_ENDED = 4, LEAST_S = 1, UNKNOWN_S = 5, MOST_S = 60 };

static struct throughput_slot *slot_at(struct throughput *t, int64_t now_us) {
    int64_t number = now_us / THROUGHPUT_SLOT_US;
    struct throughput_slot *slot = &t->slots[number % THROUGHPUT_SLOTS];
    if (slot->number != number)
        *slot = (struct throughput_slot){.number = number};
    return slot;
}

void throughput_count_step(struct throughput *t, int64_t now_us, int64_t busy_us, int64_t tokens) {
    struct throughput_slot *slot = slot_at(t, now_us);
    slot->busy_us += busy_us;
    slot->tokens += tokens;
    t->total.busy_us += busy_us;
    t->total.tokens += tokens;
}

void throughput_count_end(struct throughput *t, int64_t now_us) {
    slot_at(t, now_us)->ended++;
    t->total.ended++;
}

static struct throughput_rates rates_of(const struct throughput_slot *done) {
    struct throughput_rates rates = {.num_ended = done->ended};
    if (done->busy_us > 0) {
        rates.tokens_per_s = (double)done->tokens * 1e6 / (double)done->busy_us;
        rates.ended_per_s = (double)done->ended * 1e6 / (double)done->busy_us;
    }
    return rates;
}

struct throughput_rates throughput_rates(const struct throughput *t, int64_t now_us) {
    struct throughput_slot sum = {0};
    int64_t now = now_us / THROUGHPUT_SLOT_US;
    for (int32_t i = 0; i < THROUGHPUT_SLOTS; i++) {
        const struct throughput_slot *slot = &t->slots[i];
        if (slot->number > now - THROUGHPUT_SLOTS && slot->number <= now) {
            sum.busy_us += slot->busy_us;
            sum.tokens += slot->tokens;
            sum.ended += slot->ended;
        }
    }
    return rates_of(&sum);
}

struct throughput_rates throughput_all_rates(const struct throughput *t) {
    return rates_of(&t->total);
}

/* Until all that waits is taken up; -1: not known. */
static double waiting_s(const struct throughput_rates *r, const struct waiting_work *w) {
    if (r->num_ended >= ENOUGH_ENDED && r->ended_per_s > 0)
        return w->requests / r->ended_per_s;
    if (r->tokens_per_s > 0)
        return ((double)w->prompt_tokens + w->requests * w->mean_generated) / r->tokens_per_s;
    return -1;
}

int32_t throughput_retry_after_s(const struct throughput_rates *r, const struct waiting_work *w) {
    double s = w->requests > 0 ? waiting_s(r, w) / 2 : 0;
    if (s < 0)
        return w->stuck ? MOST_S : UNKNOWN_S;
    if (s > MOST_S)
        return MOST_S;
    int32_t whole = (int32_t)s;
    whole += whole < s;
    return whole < LEAST_S ? LEAST_S : whole;
}
