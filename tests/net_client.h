/* net_client: a blocking client of the line protocol, and a server to talk to, for tests.
 *
 * Every wait has a time limit, after which the test fails with what it was waiting for. The server
 * runs the demo model on a thread of its own, on a free port of 127.0.0.1.
 */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/dispatch.h"
#include "net/server.h"

struct net_client {
    int fd;
    struct buffer in;   /* received, not handed out yet */
    struct buffer line; /* the last line, NUL-terminated */
};

/* Connects to "127.0.0.1:PORT". receive_bytes > 0 sets the socket's receive buffer. */
bool net_client_open(struct net_client *c, const char *address, int receive_bytes);
void net_client_close(struct net_client *c);
/* Sends bytes, or a line and its LF. False when the server does not take them (no failure). */
bool net_client_send(struct net_client *c, const void *data, size_t len);
bool net_client_puts(struct net_client *c, const char *line);
/* Says that no more will be sent. */
void net_client_shut(struct net_client *c);

/* The next line without its LF, borrowed until the next call; NULL at the end of the connection or,
 * with a failure, after 100 s. */
const char *net_client_line(struct net_client *c);
/* The next line as JSON, NULL as above; to be released with json_decref. */
json_t *net_client_json(struct net_client *c);
/* The next n bytes, borrowed until the next call; NULL as above. */
const char *net_client_bytes(struct net_client *c, size_t n);
/* Everything up to the end of the connection, NUL-terminated, borrowed. */
const char *net_client_rest(struct net_client *c);
/* Has the server ended the connection (EOF or reset) within timeout_ms? Drops what comes before. */
bool net_client_ended(struct net_client *c, int timeout_ms);

/* Reads lines up to the done or error line of `id` (a JSON literal), which is returned; lines of
 * other ids are dropped. text may be NULL; gets the concatenated text, NUL-terminated. */
json_t *net_client_until_done(struct net_client *c, const char *id, struct buffer *text);
/* The error code of a line ("overloaded"), or "". */
const char *net_error_code(const json_t *line);
/* Sends a ping and expects its answer. */
bool net_client_ping(struct net_client *c);
/* An integer of the answer to stats. */
int64_t net_client_stat(struct net_client *c, const char *name);

/* A server in this process. */
struct net_fixture {
    struct server_options options;        /* set before net_fixture_start */
    struct engine_options engine_options; /* the same */
    const struct http_route *routes;      /* the same; NULL: none but the server's */
    struct server *server;
    struct dispatch *dispatch;
    pthread_t thread;
    sem_t ready; /* posted when the server listens, or has ended */
    bool running;
    int status; /* of server_run, after net_fixture_stop */
};

void net_fixture_init(struct net_fixture *f);
bool net_fixture_start(struct net_fixture *f);
const char *net_fixture_address(const struct net_fixture *f);
const char *net_fixture_http(const struct net_fixture *f);
/* Stops, waits for the end and releases everything. */
void net_fixture_stop(struct net_fixture *f);
/* What its replicas say together. */
void net_fixture_stats(struct net_fixture *f, struct engine_stats *out);
/* Waits until nothing runs or waits and no KV block is used but by the prefix cache. */
bool net_fixture_is_quiet(struct net_fixture *f);
