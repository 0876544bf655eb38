/* moeserve serve: the server on its own loop, one engine or several replicas behind it. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/cmd.h"
#include "host/demo_model.h"
#include "host/dispatch.h"
#include "host/file.h"
#include "host/group.h"
#include "host/limits.h"
#include "host/log.h"
#include "host/options.h"
#include "host/ranks.h"
#include "host/signals.h"
#include "net/api.h"
#include "net/keys.h"
#include "net/server.h"
#include "net/supervisor.h"

int cmd_fail(const struct error *e) {
    log_error("%s", e->text);
    return e->code == ERR_CONFIG ? 2 : 1;
}

int cmd_check_model(const struct options *o, struct error *e) {
    char *path = path_join(o->engine.model, "config.json");
    int why = access(path, R_OK) == 0 ? 0 : errno;
    free(path);
    if (why == 0)
        return 0;
    return error_set(e, ERR_NOT_FOUND,
                     "--model %s: expected the folder of a checkpoint, but its config.json cannot "
                     "be read: %s",
                     o->engine.model, strerror(why));
}

int cmd_choose_model(struct options *o, struct error *e) {
    if (o->engine.model)
        return 0;
    char *dir = demo_model_find();
    if (!dir)
        return error_set(
            e, ERR_NOT_FOUND,
            "the bundled demo model was not found; give a checkpoint folder with --model");
    options_keep(o, dir);
    o->engine.model = dir;
    return 0;
}

/* Sampling as the model's authors suggest, where the user says nothing else. */
static int suggested_sampling(struct options *o, struct error *e) {
    struct buffer taken = {0};
    int rc = options_read_generation_config(o, o->engine.model, &taken, e);
    if (rc == 0 && taken.len)
        log_info("from the model's generation_config.json: %.*s", (int)taken.len, taken.data);
    buffer_deinit(&taken);
    return rc;
}

void cmd_set_up_log(const struct options *o) {
    for (int level = LOG_ERROR; level <= LOG_DEBUG; level++)
        if (!strcmp(o->log_level, log_level_name((enum log_level)level)))
            log_set_level((enum log_level)level);
    log_set_format(strcmp(o->log_format, "json") ? LOG_TEXT : LOG_JSON);
    log_set_requests(o->log_requests);
    for (int32_t i = 0; i < o->num_warnings; i++)
        log_warn("%s", o->warnings[i]);
}

bool cmd_start(struct options *o, unsigned command, int argc, char **argv, const char *usage,
               int *status) {
    struct error e = {0};
    options_init(o);
    int rc = options_parse(o, command, argc, argv, &e);
    options_hide_secrets(command, argc, argv);
    cmd_set_up_log(o);
    if (rc != 0) {
        *status = cmd_fail(&e);
        return false;
    }
    *status = 0;
    if (o->help) {
        struct buffer text = {0};
        options_help(command, &text);
        printf("usage: moeserve %s\n%.*s", usage, (int)text.len, text.data);
        buffer_deinit(&text);
        return false;
    }
    if (o->version) {
        printf("moeserve %s\n", MOESERVE_VERSION);
        return false;
    }
    bool samples = command != CMD_PLAN;
    if (cmd_choose_model(o, &e) != 0 || (samples && suggested_sampling(o, &e) != 0)) {
        *status = cmd_fail(&e);
        return false;
    }
    return true;
}

/* One server and what it is started with. */
struct serving {
    const struct options *options;
    struct server *server;
    struct supervisor *supervisor;
    struct dispatch *dispatch;
    struct api api;
};

/* The one line that scripts wait for. */
static void print_ready(void *ctx, const char *address) {
    const struct serving *s = ctx;
    const char *http = server_http_address(s->server);
    char text[640];
    snprintf(text, sizeof text, "%s%s%s%s", *address ? " line=" : "", address,
             *http ? " http=" : "", http);
    printf("moeserve: ready%s\n", text);
    fflush(stdout);
    supervisor_ready(s->supervisor, text);
}

static void on_draining(void *ctx) {
    const struct serving *s = ctx;
    supervisor_stopping(s->supervisor);
}

/* For people as it is, for programs a line at a time; for neither below level info. */
static void print_table(struct dispatch *dispatch) {
    struct buffer table = {0};
    char *save = NULL;
    if (log_get_level() < LOG_INFO)
        return;
    dispatch_describe(dispatch, &table);
    buffer_putc(&table, '\0');
    if (log_get_format() == LOG_TEXT)
        fwrite(table.data, 1, table.len - 1, stderr);
    else
        for (char *l = strtok_r(table.data, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
            log_info("%s", l);
    buffer_deinit(&table);
}

/* A signal for all processes is the first one's to act upon: it drains, leaves, and the others
 * follow it in that too. */
static int follow(struct options *o, struct error *e) {
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    return engine_follow(&o->engine, e);
}

int cmd_in_group(struct options *o, int (*lead)(void *ctx, struct error *e), void *ctx,
                 struct error *e) {
    struct group *group = NULL;
    struct buffer text = {0};
    int rc =
        group_join((int64_t)((double)o->engine.join_timeout_s * 1e6),
                   ranks_wait_us((int64_t)((double)o->engine.comm_timeout_s * 1e6)), &group, e);
    if (rc != 0)
        return rc;
    if (group_size(group) > 1) {
        o->engine.group = group;
        group_describe(group, &text);
        log_info("process %d of %.*s", group_rank(group), (int)text.len, text.data);
        buffer_deinit(&text);
        if (o->engine.replicas > 1)
            rc = error_set(e, ERR_CONFIG,
                           "--replicas %d: replicas are of one process, and there are %d of them",
                           o->engine.replicas, group_size(group));
    }
    if (rc == 0)
        rc = cmd_check_model(o, e);
    if (rc == 0 && o->engine.num_gpus > 0)
        limits_raise_locked_memory(group_size(group) > 1);
    if (rc == 0)
        rc = group_rank(group) > 0 ? follow(o, e) : lead(ctx, e);
    if (rc != 0)
        group_abort(group, e->text); /* the others end with the reason too */
    group_leave(group);
    return rc;
}

/* In a thread of its own, while the server says that the model is being loaded. */
static int load(void *ctx, struct dispatch **out, struct error *e) {
    struct serving *s = ctx;
    int rc = dispatch_create(&s->options->engine, server_wake, s->server, &s->dispatch, e);
    if (rc == 0)
        print_table(s->dispatch);
    *out = s->dispatch;
    return rc;
}

static int serve(void *options, struct error *e) {
    struct options *o = options;
    struct serving s = {.options = o};
    o->server.handle_signals = true;
    o->server.on_ready = print_ready;
    o->server.on_draining = on_draining;
    o->server.on_ready_ctx = &s;
    o->server.on_loaded = api_loaded;
    o->server.on_loaded_ctx = &s.api;
    int rc = keys_create(&o->keys, &o->server.keys, e);
    if (rc == 0)
        rc = server_create(&o->server, &s.server, e);
    if (rc == 0) {
        api_init(&s.api, s.server, &o->server);
        s.supervisor = supervisor_create(s.server, o->server.keys);
        rc = server_load_and_run(s.server, load, &s, e);
        api_deinit(&s.api);
    }
    dispatch_destroy(s.dispatch);
    supervisor_close(s.supervisor);
    server_destroy(s.server);
    keys_destroy(o->server.keys);
    return rc;
}

int cmd_serve(int argc, char **argv) {
    struct options o;
    struct error e = {0};
    int status;
    signals_start();
    if (cmd_start(&o, CMD_SERVE, argc, argv, "[serve] [OPTION ...]", &status)) {
        o.engine.progress = log_get_level() >= LOG_INFO && log_get_format() == LOG_TEXT;
        if (cmd_in_group(&o, serve, &o, &e) != 0)
            status = cmd_fail(&e);
        if (e.code == ERR_INTERNAL) { /* ranks may be stuck, and what runs at exit wait for them */
            fflush(NULL);
            _exit(status);
        }
    }
    options_deinit(&o);
    return status;
}
