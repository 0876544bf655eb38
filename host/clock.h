/* clock: monotonic time in microseconds, for latencies and time-outs. Any thread. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int64_t clock_us(void);

#ifdef __cplusplus
}
#endif
