/* bandwidth: what this machine's memory can be read at, measured. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes a second of a loop that reads memory with so many threads, each a part of its own: the
 * fastest of three passes over 256 MiB, or twice the last-level cache if that is more. Takes
 * some tenths of a second. 0 when there is no memory or no thread for it. Any thread. */
double bandwidth_measure(int32_t threads);

#ifdef __cplusplus
}
#endif
