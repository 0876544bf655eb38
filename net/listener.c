#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/log.h"
#include "host/mem.h"
#include "net/address.h"

enum {
    BACKLOG = 1024,
    ACCEPTS_A_TURN = 64, /* then the connections that are there get their turn */
    REST_MS = 100,       /* when nothing can be accepted or refused */
    COMPLAIN_US = 60 * 1000 * 1000,
    SOCKET_MODE = 0660,
};

struct listener {
    int fd, reserve; /* -1: none */
    const char *option;
    struct conn_set *conns;
    const struct conn_port *port;
    struct address bound;
    char text[300];
    bool owns_file; /* the file of a Unix socket is ours */
    bool polling;
    int64_t complained_us; /* when it was last logged that accept fails; 0: never */
    uv_poll_t poll;
    uv_timer_t rest;
    int open_handles;
};

/* ---- accepting ---- */

static void on_readable(uv_poll_t *poll, int status, int events);

static void on_rested(uv_timer_t *timer) {
    struct listener *l = timer->data;
    uv_poll_start(&l->poll, UV_READABLE, on_readable);
}

static void complain(struct listener *l, int problem) {
    int64_t now_us = clock_us();
    if (l->complained_us && now_us - l->complained_us < COMPLAIN_US)
        return;
    l->complained_us = now_us;
    log_warn("%s: cannot accept a connection: %s%s", l->text, strerror(problem),
             problem == EMFILE ? " (raise the limit, ulimit -n, or lower --max-connections)" : "");
}

static int open_reserve(void) {
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* No descriptor is left: gives the reserve to the client that waits, to refuse it. False when that
 * is not possible either. */
static bool refuse_with_reserve(struct listener *l) {
    if (l->reserve < 0)
        l->reserve = open_reserve();
    if (l->reserve < 0)
        return false;
    close(l->reserve);
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        conn_refuse(l->port, fd);
    l->reserve = open_reserve();
    return fd >= 0 && l->reserve >= 0;
}

/* Returns whether there may be more to accept. */
static bool accept_one(struct listener *l) {
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        conn_accept(l->conns, l->port, fd);
        return true;
    }
    if (errno == ECONNABORTED || errno == EINTR)
        return true;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return false;
    int problem = errno;
    complain(l, problem);
    if ((problem == EMFILE || problem == ENFILE) && refuse_with_reserve(l))
        return true;
    uv_poll_stop(&l->poll); /* it would report the same client again at once */
    uv_timer_start(&l->rest, on_rested, REST_MS, 0);
    return false;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct listener *l = poll->data;
    (void)status, (void)events;
    for (int i = 0; i < ACCEPTS_A_TURN && accept_one(l); i++)
        continue;
}

/* ---- binding ---- */

/* A socket file that nobody listens on was left by a process that is gone. */
static int remove_stale(const struct address *a, const char *option, struct error *error) {
    const char *path = ((const struct sockaddr_un *)&a->socket)->sun_path;
    struct stat st;
    if (lstat(path, &st) != 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return error_set(error, ERR_CONFIG, "%s: '%s' exists and is not a socket", option, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)&a->socket, a->len) != 0 &&
                 errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    if (!stale)
        return error_set(error, ERR_IO, "cannot listen on unix:%s: another process does (%s)", path,
                         option);
    unlink(path);
    return 0;
}

static int bind_unix(struct listener *l, struct error *error) {
    const char *path = ((const struct sockaddr_un *)&l->bound.socket)->sun_path;
    int rc = remove_stale(&l->bound, l->option, error);
    if (rc != 0)
        return rc;
    /* The file is made with the mode of the socket: it is never more open than it shall be. */
    fchmod(l->fd, SOCKET_MODE);
    if (bind(l->fd, (const struct sockaddr *)&l->bound.socket, l->bound.len) != 0)
        return error_set(error, ERR_IO, "cannot listen on unix:%s: %s (%s)", path, strerror(errno),
                         l->option);
    l->owns_file = true;
    if (chmod(path, SOCKET_MODE) != 0)
        return error_set(error, ERR_IO, "cannot set the mode of %s: %s", path, strerror(errno));
    /* From here on another server sees that somebody listens. */
    return listener_listen(l, error);
}

static int bind_tcp(struct listener *l, const char *text, struct error *error) {
    int on = 1;
    setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(l->fd, (const struct sockaddr *)&l->bound.socket, l->bound.len) != 0)
        return error_set(error, ERR_IO, "cannot listen on %s: %s (choose another with %s)", text,
                         strerror(errno), l->option);
    l->bound.len = sizeof l->bound.socket;
    getsockname(l->fd, (struct sockaddr *)&l->bound.socket, &l->bound.len);
    return 0;
}

static int bind_socket(struct listener *l, const char *text, struct error *error) {
    l->fd = socket(l->bound.socket.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0)
        return error_set(error, ERR_IO, "cannot listen on %s: %s", text, strerror(errno));
    return l->bound.socket.ss_family == AF_UNIX ? bind_unix(l, error) : bind_tcp(l, text, error);
}

int listener_open(uv_loop_t *loop, const char *address, const char *option, struct conn_set *conns,
                  const struct conn_port *port, struct listener **out, struct error *error) {
    struct listener *l = xcalloc(1, sizeof *l);
    struct error why = {0};
    *out = NULL;
    l->fd = -1;
    l->option = option;
    l->conns = conns;
    l->port = port;
    l->reserve = open_reserve();
    uv_timer_init(loop, &l->rest);
    l->rest.data = l->poll.data = l;
    l->open_handles = 1;
    int rc = address_resolve(address, &l->bound, &why);
    if (rc != 0)
        error_set(error, rc, "%s %s", option, why.text);
    else
        rc = bind_socket(l, address, error);
    if (rc != 0) {
        listener_close(l);
        return rc;
    }
    address_print(&l->bound, l->text);
    uv_poll_init(loop, &l->poll, l->fd);
    l->poll.data = l;
    l->polling = true;
    l->open_handles++;
    *out = l;
    return 0;
}

int listener_listen(struct listener *l, struct error *error) {
    if (listen(l->fd, BACKLOG) != 0)
        return error_set(error, ERR_IO, "cannot listen on %s: %s (choose another with %s)", l->text,
                         strerror(errno), l->option);
    return 0;
}

int listener_start(struct listener *l, struct error *error) {
    int rc = listener_listen(l, error);
    if (rc == 0)
        uv_poll_start(&l->poll, UV_READABLE, on_readable);
    return rc;
}

const char *listener_address(const struct listener *l) {
    return l->text;
}

bool listener_is_local(const struct listener *l) {
    return address_is_local(&l->bound);
}

bool listener_is_loopback(const struct listener *l) {
    return listener_is_local(l) && l->bound.socket.ss_family != AF_UNIX;
}

/* ---- the end ---- */

void listener_unlink(struct listener *l) {
    if (l && l->owns_file)
        unlink(((const struct sockaddr_un *)&l->bound.socket)->sun_path);
}

static void on_closed(uv_handle_t *handle) {
    struct listener *l = handle->data;
    if (--l->open_handles == 0)
        free(l);
}

void listener_close(struct listener *l) {
    if (!l)
        return;
    listener_unlink(l);
    if (l->polling)
        uv_close((uv_handle_t *)&l->poll, on_closed);
    uv_close((uv_handle_t *)&l->rest, on_closed);
    if (l->fd >= 0)
        close(l->fd);
    if (l->reserve >= 0)
        close(l->reserve);
}
