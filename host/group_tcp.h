/* group_tcp: what the two files of the TCP engine share.
 *
 * Between process 0 and each other process there are two connections, data and life. All processes
 * run on little-endian machines of one kind, so structs go over the wire as they are.
 */
#pragma once

#include "host/group_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

enum tcp_channel { CHANNEL_DATA, CHANNEL_LIFE, NUM_CHANNELS };

struct tcp {
    int fd[NUM_CHANNELS][GROUP_MAX]; /* by process; -1: none */
    struct {
        char bytes[sizeof(struct group_life)];
        size_t have;
        bool ended;        /* nothing more will come */
    } incoming[GROUP_MAX]; /* life thread: messages that have arrived in part */
};

/* Fills t->fd; see struct group_engine. */
int tcp_join(struct tcp *t, struct group *g, const struct group_env *env, int64_t deadline_us,
             struct error *error);

#ifdef __cplusplus
}
#endif
