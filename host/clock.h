/* clock: monotonic time in microseconds, for latencies and time-outs. Any thread. */
#pragma once

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

int64_t clock_us(void);

/* Condition variables that are waited for by this clock: the day's time may jump. */
void clock_cond_init(pthread_cond_t *cond);
/* When a wait that begins now is over, for pthread_cond_timedwait of such a variable. */
struct timespec clock_deadline(int64_t timeout_us);

#ifdef __cplusplus
}
#endif
