/* notify: tells the service manager (systemd, Type=notify) how the server stands.
 *
 * The protocol of sd_notify(3): a datagram of NAME=value lines to the Unix socket that
 * NOTIFY_SOCKET names, where a leading '@' stands for an abstract one. It is written out here, as
 * that page allows, because libsystemd brings five more libraries into the server (compression and
 * encryption, of its journal) for one sendto, and is not everywhere. Any thread. Without
 * NOTIFY_SOCKET nothing is sent.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sends the lines, "STATUS=..."; false when nobody is told. Never waits: for what is sent again or
 * may be missed. */
bool notify_send(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for what the manager acts on and is told once, "READY=1\nSTATUS=...": waits up to 5
 * seconds while it has more messages to read than it keeps. */
bool notify_state(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* RELOADING=1 with the time, which READY=1 has to follow. Waits likewise. */
void notify_reloading(void);

/* Microseconds within which WATCHDOG=1 is expected again and again; 0: it is not. */
int64_t notify_watchdog_us(void);

#ifdef __cplusplus
}
#endif
