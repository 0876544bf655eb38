/* listener: a socket that connections come from, of TCP or a Unix socket.
 *
 * Bound when it is opened, so that an address in use is found before a model is loaded; accepting
 * from listener_start on. Accepted sockets go to a conn_set. When the process has no descriptor
 * left, one that was kept in reserve takes each waiting client's place for as long as it takes to
 * refuse it; without the reserve the listener rests for a moment. Loop thread only.
 *
 * The file of a Unix socket has mode 0660, takes the place of one that nobody listens on any more,
 * and is removed at the end.
 */
#pragma once

#include <stdbool.h>
#include <uv.h>

#include "host/error.h"
#include "net/conn.h"

#ifdef __cplusplus
extern "C" {
#endif

struct listener; /* opaque */

/* Binds `address` (address.h, not "off"); `option` is what the user gave it with, for messages.
 * ERR_CONFIG for an address that does not parse or resolve, ERR_IO for one that cannot be bound.
 * conns and port are borrowed. */
int listener_open(uv_loop_t *loop, const char *address, const char *option, struct conn_set *conns,
                  const struct conn_port *port, struct listener **out, struct error *error);
/* Lets clients connect; they wait until listener_start. ERR_IO when the port was taken meanwhile.
 */
int listener_listen(struct listener *l, struct error *error);
/* Begins to accept. As listener_listen. */
int listener_start(struct listener *l, struct error *error);
/* The address that is bound, as text. */
const char *listener_address(const struct listener *l);
/* Can only this machine reach it? */
bool listener_is_local(const struct listener *l);
/* The same, and by TCP, where other machines' names may lead to it. */
bool listener_is_loopback(const struct listener *l);
/* Removes the file of a Unix socket, in a process that is about to end. */
void listener_unlink(struct listener *l);
/* Stops and frees it, when the loop runs next; NULL is fine. */
void listener_close(struct listener *l);

#ifdef __cplusplus
}
#endif
