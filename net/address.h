/* address: where a server listens or a client connects, as users write it.
 *
 *   HOST:PORT   [V6]:PORT   :PORT (any interface)   unix:/path/of/a/socket   off
 *
 * Pure functions but address_resolve, which may ask the name server. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct address {
    bool off;
    struct sockaddr_storage socket; /* of AF_INET, AF_INET6 or AF_UNIX */
    socklen_t len;
};

/* Splits "HOST:PORT", "[V6]:PORT" or ":PORT" (any interface). Returns ERR_CONFIG with a message
 * when it is none of them. host gets at most 255 bytes, port is 0..65535 in digits. */
int address_split(const char *text, char host[256], char port[6], struct error *error);
/* Is it written in one of the five ways? ERR_CONFIG with a message when not. */
int address_check(const char *text, struct error *error);
/* One address: of a host with several the first, of localhost that of IPv4 if it has one.
 * ERR_CONFIG for what address_check refuses and for a host that nobody knows; ERR_NO_MEMORY; ERR_IO
 * when the name server does not answer for now. */
int address_resolve(const char *text, struct address *out, struct error *error);
/* Can only this machine reach it: loopback, or a Unix socket? */
bool address_is_local(const struct address *a);
/* As text: "127.0.0.1:7070", "[::1]:7070", "unix:/path". */
void address_print(const struct address *a, char out[300]);

#ifdef __cplusplus
}
#endif
