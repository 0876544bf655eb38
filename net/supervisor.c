#include "net/supervisor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "host/log.h"
#include "host/mem.h"
#include "host/notify.h"
#include "host/signals.h"
#include "net/keys.h"

struct supervisor {
    struct server *server; /* borrowed */
    struct keys *keys;     /* borrowed */
    uv_async_t reload;     /* SIGHUP came */
    uv_timer_t watchdog;
    int32_t open_handles;
    char serving[700]; /* what is said of a server that serves */
    char told[700];    /* what was last said */
    bool ready, stopping;
};

/* ---- status ---- */

static const char *status_of(const struct supervisor *s) {
    if (s->stopping)
        return "letting running requests end";
    if (!s->ready)
        return "loading the model";
    const char *health = server_status(s->server);
    return strcmp(health, "ok") != 0 ? health : s->serving;
}

/* For a message that says it. */
static const char *status_to_tell(struct supervisor *s) {
    snprintf(s->told, sizeof s->told, "%s", status_of(s));
    return s->told;
}

/* ---- reload ---- */

static void on_reload(uv_async_t *handle) {
    struct supervisor *s = handle->data;
    struct error e = {0};
    if (s->stopping)
        return;
    if (s->ready)
        notify_reloading();
    int rc = keys_reload(s->keys, &e);
    if (rc != 0)
        log_error("SIGHUP: %s; the keys stay as they were", e.text);
    int tls_rc = server_reload_tls(s->server, &e);
    if (tls_rc != 0)
        log_error("SIGHUP: %s; the certificate stays as it was", e.text);
    if (rc == 0 && tls_rc == 0)
        log_info("SIGHUP: keys and certificates were read again");
    if (s->ready)
        notify_state("READY=1\nSTATUS=%s", status_to_tell(s));
}

static void ask_for_reload(void *supervisor) {
    struct supervisor *s = supervisor;
    uv_async_send(&s->reload);
}

/* ---- watchdog ---- */

static void on_watchdog(uv_timer_t *timer) {
    struct supervisor *s = timer->data;
    const char *health = server_status(s->server);
    if (!strcmp(health, "ok") || !strcmp(health, "shutting_down"))
        notify_send("WATCHDOG=1");
    if (strcmp(status_of(s), s->told) != 0)
        notify_send("STATUS=%s", status_to_tell(s));
}

/* ---- lifecycle ---- */

struct supervisor *supervisor_create(struct server *server, struct keys *keys) {
    struct supervisor *s = xcalloc(1, sizeof *s);
    s->server = server;
    s->keys = keys;
    uv_async_init(server_loop(server), &s->reload, on_reload);
    uv_timer_init(server_loop(server), &s->watchdog);
    s->reload.data = s->watchdog.data = s;
    s->open_handles = 2;
    /* They do not keep the loop running. */
    uv_unref((uv_handle_t *)&s->reload);
    uv_unref((uv_handle_t *)&s->watchdog);
    signals_on_reload(ask_for_reload, s);
    notify_send("STATUS=%s", status_to_tell(s));
    return s;
}

void supervisor_ready(struct supervisor *s, const char *addresses) {
    uint64_t period_ms = (uint64_t)notify_watchdog_us() / 2000;
    s->ready = true;
    snprintf(s->serving, sizeof s->serving, "serving%s", addresses);
    notify_state("READY=1\nSTATUS=%s", status_to_tell(s));
    if (period_ms > 0)
        uv_timer_start(&s->watchdog, on_watchdog, 0, period_ms);
}

void supervisor_stopping(struct supervisor *s) {
    s->stopping = true;
    notify_state("STOPPING=1\nSTATUS=%s", status_to_tell(s));
}

static void on_closed(uv_handle_t *handle) {
    struct supervisor *s = handle->data;
    if (--s->open_handles == 0)
        free(s);
}

void supervisor_close(struct supervisor *s) {
    if (!s)
        return;
    signals_on_reload(NULL, NULL);
    uv_close((uv_handle_t *)&s->reload, on_closed);
    uv_close((uv_handle_t *)&s->watchdog, on_closed);
}
