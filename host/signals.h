/* signals: what the operator says to a process that runs.
 *
 *   SIGUSR1   one log level more
 *   SIGUSR2   one less
 *   SIGHUP    keys and certificates are read again
 *
 * One thread waits for them, so that they are acted upon whatever else runs, also while a model
 * loads; all other threads have them blocked. (SIGTERM and SIGINT are the server's own.) When the
 * terminal that the process was started from is gone, SIGHUP is SIGTERM.
 */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

/* Before any other thread is created. */
void signals_start(void);

/* What SIGHUP does; called in the thread that waits, and never again after this was called with
 * NULL. Without any the signal is logged and nothing else. */
void signals_on_reload(void (*fn)(void *ctx), void *ctx);

#ifdef __cplusplus
}
#endif
