/* group_tcp_join: how the processes of a group find each other over TCP.
 *
 * Process 0 listens; each other process connects twice (data, life), says who it is in a hello of
 * fixed length, and is told whether it is let in. Connections that are not of this group are
 * answered or dropped, and keep nobody waiting: up to MAX_PENDING hellos are read at once, each
 * for HELLO_US. When all have joined, the port is closed.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/group_tcp.h"
#include "host/log.h"

enum { MAX_PENDING = 64, BACKLOG = 128 };
enum { HELLO_US = 5000000, ATTEMPT_US = 3000000, RETRY_FIRST_US = 20000, RETRY_MOST_US = 500000 };
enum { SECRET_BYTES = 256, VERSION_BYTES = 24, ADDRESS_BYTES = 64, REASON_BYTES = 496 };

static const char hello_magic[8] = "moegroup", verdict_magic[8] = "moeanswr";

struct hello {
    char magic[8];
    char version[VERSION_BYTES]; /* of the program: all must be the same */
    int32_t channel, rank, size, zero;
    char host[GROUP_HOST_BYTES];
    char secret[SECRET_BYTES]; /* padded with zeros */
};

struct verdict {
    char magic[8];
    int32_t welcome, zero;
    char reason[REASON_BYTES]; /* when not */
};

/* ---- sockets --------------------------------------------------------------------------------- */

/* No waiting for more to send; a peer that is cut off is noticed by the system too. */
static void set_options(int fd, int64_t timeout_us) {
    int on = 1, idle_s = 5, interval_s = 2, count = 3;
    unsigned ms = (unsigned)(timeout_us / 1000);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
}

static bool poll_until(int fd, short events, int64_t deadline_us) {
    struct pollfd p = {.fd = fd, .events = events};
    int64_t left_us = deadline_us - clock_us();
    return left_us > 0 && poll(&p, 1, (int)(left_us / 1000) + 1) == 1;
}

/* Reads or writes all of it before the deadline. */
static bool transfer(int fd, bool send_it, void *data, size_t bytes, int64_t deadline_us) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = send_it ? send(fd, (char *)data + done, bytes - done, MSG_NOSIGNAL)
                            : recv(fd, (char *)data + done, bytes - done, 0);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return false;
        else if (!poll_until(fd, send_it ? POLLOUT : POLLIN, deadline_us))
            return false;
    }
    return true;
}

static int resolve(const struct group_env *env, struct addrinfo **out) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    return getaddrinfo(env->addr, env->port, &hints, out);
}

static struct hello make_hello(const struct group *g, const struct group_env *env,
                               enum tcp_channel channel) {
    struct hello h = {.channel = channel, .rank = g->rank, .size = g->size};
    memcpy(h.magic, hello_magic, sizeof h.magic);
    snprintf(h.version, sizeof h.version, "%s/%zu", MOESERVE_VERSION, sizeof h);
    gethostname(h.host, sizeof h.host - 1);
    memcpy(h.secret, env->secret, strlen(env->secret)); /* group_env.c has checked the length */
    return h;
}

/* ---- process 0 ------------------------------------------------------------------------------- */

/* A connection that has not said all of its hello. */
struct pending {
    int fd; /* -1: free */
    size_t have;
    int64_t deadline_us;
    struct hello hello;
    char from[ADDRESS_BYTES];
};

struct door {
    struct tcp *t;
    struct group *g;
    struct hello own;
    int listener;
    struct pending pending[MAX_PENDING];
    char refused[REASON_BYTES + ADDRESS_BYTES]; /* the last one that was not let in; "" if none */
};

/* Takes time that does not depend on where they differ. */
static bool same_secret(const char *a, const char *b) {
    unsigned char difference = 0;
    for (size_t i = 0; i < SECRET_BYTES; i++)
        difference |= (unsigned char)(a[i] ^ b[i]);
    return difference == 0;
}

/* Why this hello is not let in: "" when it is. */
static void examine(const struct door *d, const struct hello *h, char *why, size_t size) {
    const struct group *g = d->g;
    why[0] = '\0';
    if (!same_secret(h->secret, d->own.secret))
        snprintf(why, size, "its MOESERVE_GROUP_SECRET is not that of process 0");
    else if (memcmp(h->version, d->own.version, sizeof h->version) != 0)
        snprintf(why, size, "it is moeserve %s, process 0 is %s", h->version, d->own.version);
    else if (h->size != g->size)
        snprintf(why, size,
                 "it was started as process %d of %d, process 0 as one of %d: the "
                 "number of processes (WORLD_SIZE) must be the same for all",
                 h->rank, h->size, g->size);
    else if (h->rank < 1 || h->rank >= g->size || h->channel < 0 || h->channel >= NUM_CHANNELS)
        snprintf(why, size, "there is no process %d, channel %d in a group of %d", h->rank,
                 h->channel, g->size);
    else if (d->t->fd[h->channel][h->rank] >= 0)
        snprintf(why, size, "process %d has already joined from %s: give each its own RANK",
                 h->rank, g->host[h->rank]);
}

static void drop(struct door *d, struct pending *p, const char *why) {
    snprintf(d->refused, sizeof d->refused, "%s: %s", p->from, why);
    log_warn("group: refused %s", d->refused);
    close(p->fd);
    p->fd = -1;
}

/* Ends a text from outside, and makes it fit for a line of the log. */
static void make_printable(char *text, size_t size) {
    text[size - 1] = '\0';
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = '?';
}

/* The whole hello is here. */
static void answer(struct door *d, struct pending *p) {
    struct hello *h = &p->hello;
    struct verdict v = {0};
    make_printable(h->host, sizeof h->host);
    make_printable(h->version, sizeof h->version);
    examine(d, h, v.reason, sizeof v.reason);
    v.welcome = v.reason[0] == '\0';
    memcpy(v.magic, verdict_magic, sizeof v.magic);
    /* It fits into an empty socket buffer at once. */
    bool told = send(p->fd, &v, sizeof v, MSG_NOSIGNAL) == (ssize_t)sizeof v;
    if (!v.welcome || !told) {
        drop(d, p, v.welcome ? "it went away" : v.reason);
        return;
    }
    d->t->fd[h->channel][h->rank] = p->fd;
    memcpy(d->g->host[h->rank], h->host, sizeof h->host);
    p->fd = -1;
}

static void read_hello(struct door *d, struct pending *p) {
    ssize_t n = recv(p->fd, (char *)&p->hello + p->have, sizeof p->hello - p->have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(d, p, "it went away without a word");
        return;
    }
    p->have += (size_t)n;
    size_t compared = p->have < sizeof hello_magic ? p->have : sizeof hello_magic;
    if (memcmp(p->hello.magic, hello_magic, compared) != 0)
        drop(d, p, "it is no moeserve process");
    else if (p->have == sizeof p->hello)
        answer(d, p);
}

/* A place for one more: a free one, else that of the one that has waited longest. */
static struct pending *find_place(struct door *d) {
    struct pending *oldest = &d->pending[0];
    for (int i = 0; i < MAX_PENDING; i++) {
        if (d->pending[i].fd < 0)
            return &d->pending[i];
        if (d->pending[i].deadline_us < oldest->deadline_us)
            oldest = &d->pending[i];
    }
    drop(d, oldest, "too many connections that say nothing");
    return oldest;
}

static void accept_one(struct door *d) {
    struct sockaddr_storage from;
    socklen_t len = sizeof from;
    int fd = accept4(d->listener, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    set_options(fd, d->g->timeout_us);
    struct pending *p = find_place(d);
    *p = (struct pending){.fd = fd, .deadline_us = clock_us() + HELLO_US};
    if (getnameinfo((struct sockaddr *)&from, len, p->from, sizeof p->from, NULL, 0,
                    NI_NUMERICHOST) != 0)
        strcpy(p->from, "unknown address");
}

/* Somebody who had joined has ended: the place is free for its successor. */
static void forget(struct door *d, int32_t rank) {
    if (d->t->fd[CHANNEL_DATA][rank] < 0) /* both connections said so */
        return;
    log_warn("group: %s has gone before all had joined", group_name(d->g, rank).text);
    for (int c = 0; c < NUM_CHANNELS; c++) {
        if (d->t->fd[c][rank] >= 0)
            close(d->t->fd[c][rank]);
        d->t->fd[c][rank] = -1;
    }
}

/* Waits for something to happen at the door, and does what it asks for. */
static void attend(struct door *d, int64_t deadline_us) {
    struct pollfd fds[1 + MAX_PENDING + NUM_CHANNELS * GROUP_MAX];
    int32_t n = 1 + MAX_PENDING, joined = NUM_CHANNELS * d->g->size;
    int64_t now = clock_us(), wait_us = deadline_us - now;
    fds[0] = (struct pollfd){.fd = d->listener, .events = POLLIN};
    for (int i = 0; i < MAX_PENDING; i++) {
        struct pending *p = &d->pending[i];
        fds[1 + i] = (struct pollfd){.fd = p->fd, .events = POLLIN};
        if (p->fd >= 0 && p->deadline_us - now < wait_us)
            wait_us = p->deadline_us - now;
    }
    for (int32_t i = 0; i < joined; i++)
        fds[n + i] = (struct pollfd){.fd = d->t->fd[i % NUM_CHANNELS][i / NUM_CHANNELS],
                                     .events = POLLRDHUP};
    if (poll(fds, (nfds_t)(n + joined), wait_us > 0 ? (int)(wait_us / 1000) + 1 : 0) < 0)
        return;
    for (int32_t i = 0; i < joined; i++)
        if (fds[n + i].revents)
            forget(d, i / NUM_CHANNELS);
    for (int i = 0; i < MAX_PENDING; i++)
        if (d->pending[i].fd >= 0 && fds[1 + i].revents)
            read_hello(d, &d->pending[i]);
    now = clock_us();
    for (int i = 0; i < MAX_PENDING; i++)
        if (d->pending[i].fd >= 0 && now > d->pending[i].deadline_us)
            drop(d, &d->pending[i], "it says nothing");
    if (fds[0].revents)
        accept_one(d);
}

/* Lists who has not joined, as "1, 3"; returns how many. */
static int32_t list_absent(const struct door *d, char *text, size_t size) {
    int32_t absent = 0;
    size_t used = 0;
    text[0] = '\0';
    for (int32_t r = 1; r < d->g->size; r++)
        if (d->t->fd[CHANNEL_DATA][r] < 0 || d->t->fd[CHANNEL_LIFE][r] < 0) {
            if (used < size)
                used += (size_t)snprintf(text + used, size - used, "%s%d", absent ? ", " : "", r);
            absent++;
        }
    return absent;
}

static int open_listener(const struct group_env *env, int *out, struct error *error) {
    struct addrinfo *list = NULL;
    int rc = resolve(env, &list), on = 1, fd = -1, problem = 0;
    if (rc != 0)
        return error_set(error, ERR_CONFIG, "MASTER_ADDR=%s, MASTER_PORT=%s: %s", env->addr,
                         env->port, gai_strerror(rc));
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            problem = errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
            problem = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    *out = fd;
    if (fd >= 0)
        return 0;
    bool elsewhere = problem == EADDRNOTAVAIL;
    return error_set(error, elsewhere ? ERR_CONFIG : ERR_IO,
                     "process 0 cannot listen on MASTER_ADDR=%s, MASTER_PORT=%s: %s%s", env->addr,
                     env->port, strerror(problem),
                     elsewhere ? "; MASTER_ADDR must be an address of the machine of process 0"
                               : "");
}

static int let_all_in(struct door *d, int64_t deadline_us, struct error *error) {
    char absent[256];
    int32_t num_absent;
    while ((num_absent = list_absent(d, absent, sizeof absent)) > 0) {
        if (clock_us() > deadline_us)
            return error_set(error, ERR_INTERNAL,
                             "%d of %d processes have joined in time; waited for process %s%s%s",
                             d->g->size - num_absent, d->g->size, absent,
                             d->refused[0] ? "; refused " : "", d->refused);
        attend(d, deadline_us);
    }
    return 0;
}

/* Those who had joined and wait for the others. */
static void tell_end(struct door *d, const char *why) {
    struct group_life m = {.kind = LIFE_FAILED};
    snprintf(m.text, sizeof m.text, "%.*s", GROUP_TEXT_BYTES - 1, why);
    for (int32_t r = 1; r < d->g->size; r++)
        if (d->t->fd[CHANNEL_LIFE][r] >= 0)
            d->g->engine->life_send(d->g, r, &m);
}

static int join_as_first(struct tcp *t, struct group *g, const struct group_env *env,
                         int64_t deadline_us, struct error *error) {
    struct door d = {.t = t, .g = g, .own = make_hello(g, env, CHANNEL_DATA)};
    struct error problem = {0};
    memcpy(g->host[0], d.own.host, sizeof g->host[0]);
    int rc = open_listener(env, &d.listener, error);
    if (rc != 0)
        return rc;
    for (int i = 0; i < MAX_PENDING; i++)
        d.pending[i].fd = -1;
    rc = let_all_in(&d, deadline_us, &problem);
    close(d.listener);
    for (int i = 0; i < MAX_PENDING; i++)
        if (d.pending[i].fd >= 0)
            close(d.pending[i].fd);
    if (rc == 0)
        return 0;
    tell_end(&d, problem.text);
    return error_set(error, rc, "%s", problem.text);
}

/* ---- the others ------------------------------------------------------------------------------ */

/* One attempt to connect; -1 with the reason in errno. */
static int try_connect(const struct addrinfo *a, int64_t deadline_us) {
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), problem = 0;
    socklen_t len = sizeof problem;
    int64_t until_us = clock_us() + ATTEMPT_US;
    if (fd < 0)
        return -1;
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0)
        return fd;
    problem = errno;
    if (problem == EINPROGRESS) {
        if (!poll_until(fd, POLLOUT, until_us < deadline_us ? until_us : deadline_us))
            problem = ETIMEDOUT;
        else
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &problem, &len);
        if (problem == 0)
            return fd;
    }
    close(fd);
    errno = problem;
    return -1;
}

/* Process 0 may start later, and names may become known later, so all of it is tried again. */
static int connect_to_first(const struct group_env *env, int64_t deadline_us, int *out,
                            struct error *error) {
    int64_t pause_us = RETRY_FIRST_US;
    for (;;) {
        struct addrinfo *list = NULL;
        int unknown = resolve(env, &list), fd = -1;
        for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
            fd = try_connect(a, deadline_us);
        int problem = errno;
        if (list)
            freeaddrinfo(list);
        *out = fd;
        if (fd >= 0)
            return 0;
        if (clock_us() + pause_us > deadline_us)
            return error_set(error, ERR_INTERNAL,
                             "process 0 does not answer on MASTER_ADDR=%s, MASTER_PORT=%s: %s",
                             env->addr, env->port,
                             unknown ? gai_strerror(unknown) : strerror(problem));
        usleep((useconds_t)pause_us);
        pause_us = pause_us * 2 < RETRY_MOST_US ? pause_us * 2 : RETRY_MOST_US;
    }
}

static int introduce(struct tcp *t, struct group *g, const struct group_env *env,
                     enum tcp_channel channel, int64_t deadline_us, struct error *error) {
    struct hello h = make_hello(g, env, channel);
    struct verdict v;
    int rc = connect_to_first(env, deadline_us, &t->fd[channel][0], error);
    if (rc != 0)
        return rc;
    int fd = t->fd[channel][0];
    set_options(fd, g->timeout_us);
    if (!transfer(fd, true, &h, sizeof h, deadline_us) ||
        !transfer(fd, false, &v, sizeof v, deadline_us) ||
        memcmp(v.magic, verdict_magic, sizeof v.magic) != 0)
        return error_set(error, ERR_INTERNAL,
                         "MASTER_ADDR=%s, MASTER_PORT=%s answers, but not as process 0 of a group",
                         env->addr, env->port);
    v.reason[sizeof v.reason - 1] = '\0';
    if (!v.welcome)
        return error_set(error, ERR_CONFIG, "process 0 refused process %d: %s", g->rank, v.reason);
    return 0;
}

int tcp_join(struct tcp *t, struct group *g, const struct group_env *env, int64_t deadline_us,
             struct error *error) {
    if (g->rank == 0)
        return join_as_first(t, g, env, deadline_us, error);
    int rc = introduce(t, g, env, CHANNEL_DATA, deadline_us, error);
    return rc != 0 ? rc : introduce(t, g, env, CHANNEL_LIFE, deadline_us, error);
}
