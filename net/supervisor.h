/* supervisor: the server as whoever runs it sees it: the service manager and the operator.
 *
 *   on start    STATUS= says that the model loads
 *   ready       READY=1; from then on, at half of the time that the service manager gives,
 *               WATCHDOG=1 as long as the loop runs and the server is well or drains, and STATUS=
 *               where it has changed
 *   SIGHUP      keys and certificates are read again, from ready on between RELOADING=1 and READY=1
 *   stopping    STOPPING=1
 *
 * A server whose steps no longer advance (--stall-timeout) is so killed and started again by a
 * service manager with a watchdog. See host/notify.h, host/signals.h. Loop thread only.
 */
#pragma once

#include "net/server.h"

#ifdef __cplusplus
extern "C" {
#endif

struct supervisor; /* opaque */

/* After server_create; borrows both until supervisor_close. */
struct supervisor *supervisor_create(struct server *server, struct keys *keys);
/* The server serves at these addresses. */
void supervisor_ready(struct supervisor *s, const char *addresses);
/* The server has begun to stop. */
void supervisor_stopping(struct supervisor *s);
/* After the server has run and before server_destroy, which runs the loop that frees it. */
void supervisor_close(struct supervisor *s); /* NULL is fine */

#ifdef __cplusplus
}
#endif
