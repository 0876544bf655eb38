/* process: what the system says of this process. Any thread. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What is not known (/proc cannot be read, for want of descriptors perhaps) is -1. */
struct process_info {
    int64_t resident_bytes, virtual_bytes;
    int64_t open_fds, max_fds;
    int64_t major_faults; /* pages that had to be read from a disk */
    double cpu_seconds;   /* of all threads, user and system */
    double start_time;    /* seconds since 1970; the same in every answer */
};

void process_info(struct process_info *out);

#ifdef __cplusplus
}
#endif
