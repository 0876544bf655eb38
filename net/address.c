#include "address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char unix_prefix[] = "unix:";

/* The path behind "unix:", or NULL. */
static const char *unix_path(const char *text) {
    size_t len = sizeof unix_prefix - 1;
    return strncmp(text, unix_prefix, len) ? NULL : text + len;
}

int address_split(const char *text, char host[256], char port[6], struct error *error) {
    const char *colon = strrchr(text, ':');
    const char *from = text, *to = colon;
    char *end;
    if (!colon)
        return error_set(error, ERR_CONFIG, "'%.100s' is not HOST:PORT", text);
    if (*from == '[' && to > from && to[-1] == ']') {
        from++;
        to--;
    } else if (memchr(from, ':', (size_t)(to - from))) {
        return error_set(error, ERR_CONFIG, "'%.100s': write an IPv6 address as [ADDRESS]:PORT",
                         text);
    }
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || number > 65535)
        return error_set(error, ERR_CONFIG, "'%.100s': the port must be 0 to 65535", text);
    if (to - from > 255)
        return error_set(error, ERR_CONFIG, "the host name is longer than 255 bytes");
    snprintf(host, 256, "%.*s", (int)(to - from), from);
    snprintf(port, 6, "%u", (unsigned)number & 0xffff);
    return 0;
}

static int check_path(const char *path, struct error *error) {
    const size_t max = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    if (*path == '\0')
        return error_set(error, ERR_CONFIG, "unix: must be followed by the path of a socket");
    if (strlen(path) > max)
        return error_set(error, ERR_CONFIG,
                         "'%.200s': the path of a Unix socket has at most %zu bytes", path, max);
    return 0;
}

int address_check(const char *text, struct error *error) {
    char host[256], port[6];
    if (!strcmp(text, "off"))
        return 0;
    if (unix_path(text))
        return check_path(unix_path(text), error);
    return address_split(text, host, port, error);
}

/* Of several addresses the first; of localhost the one of IPv4, which clients try in any case,
 * while its list may begin with ::1. */
static const struct addrinfo *choose(const struct addrinfo *list, const char *host) {
    if (!strcasecmp(host, "localhost"))
        for (const struct addrinfo *a = list; a; a = a->ai_next)
            if (a->ai_family == AF_INET)
                return a;
    return list;
}

/* A host that nobody knows stays unknown; all else may be over the next time. */
static int resolve_error(int gai) {
    switch (gai) {
    case EAI_MEMORY:
        return ERR_NO_MEMORY;
    case EAI_NONAME:
    case EAI_NODATA:
    case EAI_ADDRFAMILY:
        return ERR_CONFIG;
    default:
        return ERR_IO;
    }
}

static int resolve_host(const char *text, struct address *out, struct error *error) {
    char host[256], port[6];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    int rc = address_split(text, host, port, error);
    if (rc != 0)
        return rc;
    bool any = *host == '\0' || !strcmp(host, "*");
    int gai = getaddrinfo(any ? "0.0.0.0" : host, port, &hints, &list);
    if (gai != 0)
        return error_set(error, resolve_error(gai), "%.100s: %s", text, gai_strerror(gai));
    const struct addrinfo *chosen = choose(list, host);
    memcpy(&out->socket, chosen->ai_addr, chosen->ai_addrlen);
    out->len = chosen->ai_addrlen;
    freeaddrinfo(list);
    return 0;
}

int address_resolve(const char *text, struct address *out, struct error *error) {
    const char *path = unix_path(text);
    memset(out, 0, sizeof *out);
    int rc = address_check(text, error);
    if (rc != 0)
        return rc;
    out->off = !strcmp(text, "off");
    if (out->off)
        return 0;
    if (!path)
        return resolve_host(text, out, error);
    struct sockaddr_un *un = (struct sockaddr_un *)&out->socket;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, strlen(path) + 1);
    out->len = sizeof *un;
    return 0;
}

bool address_is_local(const struct address *a) {
    if (a->socket.ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)&a->socket)->sin6_addr);
    if (a->socket.ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)&a->socket)->sin_addr.s_addr) >> 24 == 127;
    return true;
}

void address_print(const struct address *a, char out[300]) {
    char ip[INET6_ADDRSTRLEN] = "";
    if (a->socket.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&a->socket;
        inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof ip);
        snprintf(out, 300, "[%s]:%d", ip, ntohs(in6->sin6_port));
    } else if (a->socket.ss_family == AF_INET) {
        const struct sockaddr_in *in4 = (const struct sockaddr_in *)&a->socket;
        inet_ntop(AF_INET, &in4->sin_addr, ip, sizeof ip);
        snprintf(out, 300, "%s:%d", ip, ntohs(in4->sin_port));
    } else {
        snprintf(out, 300, "unix:%s", ((const struct sockaddr_un *)&a->socket)->sun_path);
    }
}
