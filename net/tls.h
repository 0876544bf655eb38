/* tls: OpenSSL between a connection's socket and its handler, as bytes in and bytes out.
 *
 * Does no I/O of its own: conn.c hands it what was received and sends what it makes. TLS 1.2 and
 * 1.3, no renegotiation, no compression, no session cache; HTTP/1.1 is what ALPN chooses where the
 * client offers it. A certificate that is loaded anew is for new connections. Loop thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "host/buffer.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tls_server; /* opaque: a certificate and its key */
struct tls;        /* opaque: one connection */

/* PEM files: the certificate with its chain, and the key. ERR_CONFIG when they cannot be read or do
 * not belong together. The paths are borrowed. */
int tls_server_create(const char *cert_file, const char *key_file, struct tls_server **out,
                      struct error *error);
/* Reads the files again. On an error everything stays as it was. */
int tls_server_reload(struct tls_server *s, struct error *error);
/* NULL is fine. No connection may be left. */
void tls_server_destroy(struct tls_server *s);

enum tls_result {
    TLS_OPEN,
    TLS_ENDED,   /* the peer sends no more */
    TLS_NOT_TLS, /* its first byte begins no handshake */
    TLS_FAILED,  /* protocol error or no common version; the output may hold an alert */
};

struct tls *tls_open(const struct tls_server *s, bool http);
void tls_close(struct tls *t); /* NULL is fine */
/* Takes received bytes, all of them, and appends what they say to `plain`. */
enum tls_result tls_receive(struct tls *t, const char *data, size_t len, struct buffer *plain);
/* Is the handshake over? Before, nothing can be sent. */
bool tls_is_ready(const struct tls *t);
/* Encrypts bytes. False when the connection has failed. */
bool tls_send(struct tls *t, const char *data, size_t len);
/* Tells the peer that nothing more follows. */
void tls_end(struct tls *t);
/* What is to be sent to the peer; the caller empties it. */
struct buffer *tls_output(struct tls *t);
/* For logs: what OpenSSL says of the failure. */
const char *tls_problem(const struct tls *t);

#ifdef __cplusplus
}
#endif
