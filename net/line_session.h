/* line_session: the line protocol on one connection: lines to requests, engine events to answers.
 *
 * Order. The lines of one connection are handled in the order in which they came. A line that is
 * tokenised in the worker pool holds back the lines behind it (and nothing else), so that a cancel
 * finds the request it names. JSON requests then run at the same time; plain prompts run one after
 * another, each answered before the next is given to the engine.
 *
 * A client request lives from its line until the engine's last event for it, and outlives its
 * session when the client goes away: the engine is told to cancel, and the event finds no session.
 *
 * Everything runs on the loop's thread, except line_job_run in the pool, which touches only the job
 * and the line it was given; the session is not freed and its reader not fed meanwhile.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/dispatch.h"
#include "net/conn.h"
#include "net/line_protocol.h"
#include "net/server.h"
#include "net/ticket.h"

#ifdef __cplusplus
extern "C" {
#endif

struct client_request;

/* What all line sessions of a server share. Owned by the server; loop thread only. */
struct line_sessions {
    const struct server_options *options; /* borrowed */
    struct dispatch *dispatch;            /* borrowed */
    struct engine_model_info model;
    struct line_context context;
    struct client_request *requests; /* all that the engine still has an event for */
    bool draining;                   /* idle connections are closed */
    bool expired;                    /* every connection is closed, its requests are refused */
};

void line_sessions_init(struct line_sessions *s, const struct server_options *options,
                        struct dispatch *dispatch);
/* Frees requests whose last event never came. No session may be left. */
void line_sessions_deinit(struct line_sessions *s);

/* The handler for conn_set; its context is a struct line_sessions. */
extern const struct conn_handler line_session_handler;

#ifdef __cplusplus
}
#endif
