/* comm_internal: what comm.c and its engines share. Not for other modules. */
#pragma once

#include <pthread.h>

#include "cuda/comm.h"
#include "cuda/staged.h"
#include "host/mem.h"

/* Of all ranks of this process. Written by the first rank's thread between barriers. */
struct comm_shared {
    int32_t num_ranks, devices[MAX_RANKS];
    struct staged *staged; /* owned; NULL: not in use */
    bool ready;            /* it could be created */
    pthread_mutex_t lock;  /* of what follows */
    int32_t users;
    struct buffer left_out; /* lines */
};

struct comm {
    struct comm_config config;
    struct comm_shared *shared;
    int32_t first_column[MAX_RANKS + 1]; /* of each rank's part of the vocabulary; the last is V */
};
