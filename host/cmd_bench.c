/* moeserve bench: load on a server, and the figures that it answers with. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uv.h>

#include "host/buffer.h"
#include "host/cmd.h"
#include "host/limits.h"
#include "host/log.h"
#include "host/mem.h"
#include "host/options.h"
#include "net/bench_client.h"
#include "net/bench_options.h"
#include "net/bench_prompts.h"
#include "net/bench_report.h"
#include "net/bench_server.h"

enum { MAX_ERRORS_SHOWN = 5, SPARE_FILES = 64, STATUS_INTERRUPTED = 130 };

static const int end_signals[] = {SIGINT, SIGTERM, SIGHUP};
enum { NUM_END_SIGNALS = sizeof end_signals / sizeof *end_signals };

/* One run. */
struct bench {
    struct bench_options options;
    char *api_key; /* owned; NULL: none */
    uv_loop_t loop;
    uv_signal_t signals[NUM_END_SIGNALS];
    int stop;                    /* a signal came */
    struct bench_server *server; /* NULL: a running one is used */
    struct bench_client *client;
    struct bench_model model;
    struct bench_prompts prompts;
};

static void on_signal(uv_signal_t *signal, int number) {
    (void)number;
    *(int *)signal->data = 1;
}

static void open_loop(struct bench *b) {
    uv_loop_init(&b->loop);
    for (int i = 0; i < NUM_END_SIGNALS; i++) {
        uv_signal_init(&b->loop, &b->signals[i]);
        b->signals[i].data = &b->stop;
        uv_signal_start(&b->signals[i], on_signal, end_signals[i]);
    }
}

static void close_loop(struct bench *b) {
    for (int i = 0; i < NUM_END_SIGNALS; i++)
        uv_close((uv_handle_t *)&b->signals[i], NULL);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&b->loop);
    CHECK(rc == 0, "uv_loop_close: %s", uv_strerror(rc));
}

/* The key that was given, which `ps` does not show any longer; or the first one of the variable,
 * which a server that is started takes, too. */
static void take_key(struct bench *b) {
    char *given = b->options.api_key, *save = NULL;
    const char *variable = getenv("MOESERVE_API_KEY");
    if (given) {
        b->api_key = xstrdup(given);
        memset(given, '*', strlen(given));
    } else if (variable) {
        char *words = xstrdup(variable), *first = strtok_r(words, " \t\r\n", &save);
        b->api_key = first ? xstrdup(first) : NULL;
        free(words);
    }
}

/* Every request in flight takes a file descriptor, here and in a server that is started. */
static void raise_file_limit(const struct bench_settings *s) {
    int32_t most = s->max_concurrency ? s->max_concurrency : s->num_prompts;
    limits_raise_files((uint64_t)most + SPARE_FILES, "the requests in flight");
}

/* ---- steps ---------------------------------------------------------------------------------- */

static int start_server(struct bench *b, struct error *error) {
    static char serve[] = "serve", listen[] = "--listen", any_port[] = "127.0.0.1:0";
    static char http[] = "--http", off[] = "off";
    char *const *more = b->options.settings.server_args;
    char exe[4096];
    size_t size = sizeof exe, n = 0;
    int rc = uv_exepath(exe, &size);
    if (rc != 0)
        return error_set(error, ERR_IO, "own program: %s", uv_strerror(rc));
    for (n = 0; more && more[n];)
        n++;
    char **args = xcalloc(n + 7, sizeof *args);
    args[0] = exe;
    args[1] = serve;
    args[2] = listen;
    args[3] = any_port;
    args[4] = http;
    args[5] = off;
    for (size_t i = 0; i < n; i++)
        args[6 + i] = more[i];
    rc = bench_server_start(&b->loop, args, &b->stop, &b->server, error);
    options_hide_secrets(CMD_SERVE, (int)n + 1, args + 5); /* the report has the arguments, too */
    free(args);
    if (rc == 0)
        b->options.settings.server = bench_server_address(b->server);
    return rc;
}

static const char *first_error(const struct bench_prompts *p) {
    for (int32_t i = 0; i < p->count; i++)
        if (p->records[i].error)
            return p->records[i].error;
    return NULL;
}

static int send_load(struct bench *b, struct bench_prompts *p, double *duration_s,
                     struct error *error) {
    struct bench_load load = {
        .items = p->items,
        .records = p->records,
        .count = p->count,
        .max_concurrency = b->options.settings.max_concurrency,
        .exact_len = b->options.settings.ignore_eos,
    };
    int rc = bench_client_run(b->client, &load, error);
    *duration_s = load.duration_s;
    return rc;
}

static int warm_up(struct bench *b, struct error *error) {
    const struct bench_settings *s = &b->options.settings;
    struct bench_prompts p = {0};
    double duration_s;
    if (s->warmup == 0)
        return 0;
    int rc = bench_prompts_build(b->client, s, &b->model, BENCH_WARMUP, s->warmup, &p, error);
    if (rc == 0)
        rc = send_load(b, &p, &duration_s, error);
    if (rc == 0 && first_error(&p))
        rc = error_set(error, ERR_INVALID_REQUEST, "a warm-up request failed: %s", first_error(&p));
    bench_prompts_deinit(&p);
    return rc;
}

static int measure(struct bench *b, struct bench_summary *out, struct error *error) {
    struct bench_settings *s = &b->options.settings;
    double duration_s;
    int rc = s->server ? 0 : start_server(b, error);
    if (rc == 0)
        rc = bench_client_create(&b->loop, s->server, b->api_key, (int64_t)(s->timeout_s * 1e6),
                                 &b->stop, &b->client, error);
    if (rc == 0)
        rc = bench_model_query(b->client, &b->model, error);
    if (rc != 0)
        return rc;
    s->model = b->model.name;
    log_info("bench: %s at %s, %d requests", s->model, s->server, (int)s->num_prompts);
    rc = warm_up(b, error);
    if (rc == 0)
        rc = bench_prompts_build(b->client, s, &b->model, BENCH_MEASURED, s->num_prompts,
                                 &b->prompts, error);
    if (rc == 0)
        rc = send_load(b, &b->prompts, &duration_s, error);
    if (rc == 0)
        bench_summarize(b->prompts.records, b->prompts.count, duration_s, out);
    return rc;
}

/* ---- results -------------------------------------------------------------------------------- */

static int write_json(const struct bench *b, const struct bench_summary *summary,
                      struct error *error) {
    const char *path = b->options.json;
    char date[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    struct buffer text = {0};
    bench_report_json(&text, date, &b->options.settings, summary, b->prompts.records);
    FILE *f = fopen(path, "w");
    bool ok = f && fwrite(text.data, 1, text.len, f) == text.len;
    if (f && fclose(f) != 0)
        ok = false;
    buffer_deinit(&text);
    return ok ? 0 : error_set(error, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
}

static void print_errors(const struct bench *b) {
    int32_t shown = 0;
    int status;
    for (int32_t i = 0; i < b->prompts.count && shown < MAX_ERRORS_SHOWN; i++) {
        if (b->prompts.records[i].error) {
            log_error("bench: request %d: %s", (int)i, b->prompts.records[i].error);
            shown++;
        }
    }
    if (b->server && bench_server_has_ended(b->server, &status))
        log_error("bench: the server ended with status %d during the run", status);
}

static int report(const struct bench *b, const struct bench_summary *summary, struct error *error) {
    const struct bench_settings *s = &b->options.settings;
    struct buffer block = {0};
    bench_report_block(&block, s, summary);
    fwrite(block.data, 1, block.len, stdout);
    fflush(stdout);
    buffer_deinit(&block);
    print_errors(b);
    if (s->prefix_len == 0 && summary->cached_tokens)
        log_warn("bench: %lld prompt tokens came from the prefix cache: use another --seed for "
                 "every run against the same server",
                 (long long)summary->cached_tokens);
    return b->options.json ? write_json(b, summary, error) : 0;
}

int cmd_bench(int argc, char **argv) {
    struct bench b = {0};
    struct bench_summary summary = {0};
    struct error error = {0};
    if (bench_options_parse(&b.options, argc, argv, &error) != 0) {
        log_error("%s", error.text);
        return 2;
    }
    if (b.options.help) {
        struct buffer text = {0};
        bench_options_help(&text);
        fwrite(text.data, 1, text.len, stdout);
        buffer_deinit(&text);
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit(&b.options.settings);
    take_key(&b);
    open_loop(&b);
    int rc = measure(&b, &summary, &error);
    if (rc == 0)
        rc = report(&b, &summary, &error);
    if (rc != 0)
        log_error("bench: %s", error.text);
    bench_client_destroy(b.client);
    bench_server_stop(b.server);
    close_loop(&b);
    bench_prompts_deinit(&b.prompts);
    free(b.model.name);
    free(b.api_key);
    return b.stop ? STATUS_INTERRUPTED : rc == 0 && bench_is_valid(&summary) ? 0 : 1;
}
