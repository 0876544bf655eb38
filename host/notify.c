#include "host/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/log.h"

/* For a manager that does not read: by then it has troubles of its own. */
enum { LONGEST_WAIT_S = 5 };

/* The socket's address; its length, 0 when there is none. */
static socklen_t find_address(struct sockaddr_un *a) {
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path ? strlen(path) : 0;
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    if (len < 2 || len >= sizeof a->sun_path || (path[0] != '/' && path[0] != '@'))
        return 0;
    memcpy(a->sun_path, path, len);
    if (path[0] == '@')
        a->sun_path[0] = '\0'; /* abstract: its name is no longer than these bytes */
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (path[0] == '/'));
}

/* flags: MSG_DONTWAIT or 0. */
static bool send_text(int flags, const char *fmt, va_list ap) {
    const struct timeval longest = {.tv_sec = LONGEST_WAIT_S};
    struct sockaddr_un a;
    char text[1024];
    socklen_t len = find_address(&a);
    if (len == 0)
        return false;
    vsnprintf(text, sizeof text, fmt, ap);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ssize_t sent = -1;
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &longest, sizeof longest) == 0)
        sent = sendto(fd, text, strlen(text), MSG_NOSIGNAL | flags, (struct sockaddr *)&a, len);
    if (sent < 0)
        log_warn("cannot tell the service manager '%.*s' (NOTIFY_SOCKET): %s",
                 (int)strcspn(text, "\n"), text, strerror(errno));
    if (fd >= 0)
        close(fd);
    return sent >= 0;
}

bool notify_send(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    bool sent = send_text(MSG_DONTWAIT, fmt, ap);
    va_end(ap);
    return sent;
}

bool notify_state(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    bool sent = send_text(0, fmt, ap);
    va_end(ap);
    return sent;
}

void notify_reloading(void) {
    notify_state("RELOADING=1\nMONOTONIC_USEC=%lld\nSTATUS=reading keys and certificates again",
                 (long long)clock_us());
}

/* A variable that holds a number above 0, or 0. */
static int64_t positive(const char *name) {
    const char *s = getenv(name);
    char *end;
    long long v = s ? strtoll(s, &end, 10) : 0;
    return v > 0 && *end == '\0' ? v : 0;
}

int64_t notify_watchdog_us(void) {
    int64_t pid = positive("WATCHDOG_PID");
    return pid == 0 || pid == getpid() ? positive("WATCHDOG_USEC") : 0;
}
