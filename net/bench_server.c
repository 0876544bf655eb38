#include "bench_server.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "net/line_reader.h"

enum { KILL_AFTER_MS = 30000, MAX_LINE_BYTES = 1 << 20, READ_BYTES = 4096 };

struct bench_server {
    uv_loop_t *loop; /* borrowed */
    uv_process_t process;
    uv_pipe_t output; /* the child's standard output; read to its end so that it never blocks */
    uv_timer_t kill;
    struct line_reader reader;
    char scratch[READ_BYTES];
    char address[300]; /* "" until the ready line */
    bool ended;
    int status;
    int open; /* handles that are not closed yet */
};

bool bench_server_read_ready(const char *line, size_t len, char *address, size_t size) {
    static const char key[] = "line=";
    const char *end = line + len, *word = memmem(line, len, "ready", 5);
    const char *at = word ? memmem(word, (size_t)(end - word), key, sizeof key - 1) : NULL;
    if (!at)
        return false;
    at += sizeof key - 1;
    size_t n = 0;
    while (at + n < end && at[n] != ' ' && at[n] != '\t' && at[n] != '\r')
        n++;
    if (n == 0 || n >= size || !memchr(at, ':', n))
        return false;
    memcpy(address, at, n);
    address[n] = '\0';
    return true;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    struct bench_server *s = handle->data;
    (void)suggested;
    *buf = uv_buf_init(s->scratch, READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    struct bench_server *s = stream->data;
    const char *line;
    size_t len;
    if (n < 0)
        uv_read_stop(stream);
    if (n <= 0 || s->address[0])
        return; /* nothing is read from it after the ready line */
    line_reader_feed(&s->reader, buf->base, (size_t)n);
    while (!s->address[0] && line_reader_next(&s->reader, &line, &len) == 1)
        bench_server_read_ready(line, len, s->address, sizeof s->address);
}

static void on_ended(uv_process_t *process, int64_t exit_status, int term_signal) {
    struct bench_server *s = process->data;
    s->ended = true;
    s->status = term_signal ? 128 + term_signal : (int)exit_status;
}

static void on_kill(uv_timer_t *timer) {
    struct bench_server *s = timer->data;
    if (!s->ended)
        uv_process_kill(&s->process, SIGKILL);
}

static void on_closed(uv_handle_t *handle) {
    struct bench_server *s = handle->data;
    s->open--;
}

static int spawn(struct bench_server *s, char **args) {
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_IGNORE},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&s->output},
        {.flags = UV_INHERIT_FD, .data.fd = 2},
    };
    uv_process_options_t options = {
        .exit_cb = on_ended,
        .file = args[0],
        .args = args,
        .stdio_count = 3,
        .stdio = stdio,
    };
    uv_pipe_init(s->loop, &s->output, 0);
    uv_timer_init(s->loop, &s->kill);
    s->output.data = s->kill.data = s->process.data = s;
    s->open = 3; /* uv_spawn leaves a handle behind also when it fails */
    int rc = uv_spawn(s->loop, &s->process, &options);
    s->ended = rc != 0;
    if (rc == 0)
        rc = uv_read_start((uv_stream_t *)&s->output, on_alloc, on_read);
    return rc;
}

int bench_server_start(uv_loop_t *loop, char **args, const int *stop, struct bench_server **out,
                       struct error *error) {
    struct bench_server *s = xcalloc(1, sizeof *s);
    s->loop = loop;
    line_reader_init(&s->reader, MAX_LINE_BYTES);
    int rc = spawn(s, args);
    if (rc != 0) {
        rc = error_set(error, ERR_IO, "%s: cannot be started: %s", args[0], uv_strerror(rc));
        goto fail;
    }
    while (!s->address[0] && !s->ended && !*stop)
        uv_run(loop, UV_RUN_ONCE);
    if (*stop) {
        rc = error_set(error, ERR_SHUTTING_DOWN, "interrupted");
        goto fail;
    }
    if (s->ended) {
        rc = error_set(error, ERR_IO, "the server ended with status %d before it was ready",
                       s->status);
        goto fail;
    }
    *out = s;
    return 0;
fail:
    bench_server_stop(s);
    return rc;
}

const char *bench_server_address(const struct bench_server *s) {
    return s->address;
}

bool bench_server_has_ended(const struct bench_server *s, int *status) {
    *status = s->status;
    return s->ended;
}

void bench_server_stop(struct bench_server *s) {
    if (!s)
        return;
    if (!s->ended) {
        uv_process_kill(&s->process, SIGTERM);
        uv_timer_start(&s->kill, on_kill, KILL_AFTER_MS, 0);
    }
    while (!s->ended)
        uv_run(s->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&s->process, on_closed);
    uv_close((uv_handle_t *)&s->output, on_closed);
    uv_close((uv_handle_t *)&s->kill, on_closed);
    while (s->open)
        uv_run(s->loop, UV_RUN_ONCE);
    line_reader_deinit(&s->reader);
    free(s);
}
