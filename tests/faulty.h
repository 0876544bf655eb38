/* faulty: the program with a rank that is killed, stalled or poisoned in the middle of decoding
 * (--fault), and what four clients see of it, for tests on the CPU and on GPUs.
 *
 * Nobody waits longer than the deadline, no token that is wrong is ever sent, every client is
 * answered, and blocks are free again. The reference is the same program without a fault: greedy
 * answers are the same bytes whatever happens beside them (on GPUs with --batch-invariant).
 */
#pragma once

#include "tests/answers.h"
#include "tests/program.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A server to try. */
struct faulty {
    const char *const *args; /* NULL-ended, the ranks among them; borrowed */
    int32_t ranks, layers;   /* that a fault may hit */
    int32_t tokens;          /* of an answer, 4 .. ANSWER_TOKENS */
    const char *timeout;     /* --comm-timeout of a rank that stalls */
};

/* The answers without a fault; false with a failure. */
bool faulty_reference(const struct faulty *f, struct answers *want);
/* With this fault (or NULL: whatever the environment says) all clients get what is right, twice,
 * and the server ends well. */
void faulty_check_unnoticed(const struct faulty *f, const char *fault, const char *timeout,
                            const struct answers *want);

/* `times` servers each, or as many as the environment's FAULT_TIMES says, with faults at ranks,
 * layers and random steps. */
void faulty_check_kills(const struct faulty *f, int32_t times);
/* limit_us: within which the server has ended, from the first request on. */
void faulty_check_stalls(const struct faulty *f, int32_t times, int64_t limit_us);
/* Whatever the environment says is for good: all clients get an error with these words after a
 * beginning of what is right, if anything, and the server ends. */
void faulty_check_given_up(const struct faulty *f, const char *words, const struct answers *want);
void faulty_check_nans(const struct faulty *f, int32_t times);
/* `stats` says that the server is unhealthy while a rank is stalled. */
void faulty_check_health(const struct faulty *f);

#ifdef __cplusplus
}
#endif
