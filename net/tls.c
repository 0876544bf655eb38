#include "tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

enum { HANDSHAKE_RECORD = 0x16, READ_BYTES = 16 * 1024 };

struct tls_server {
    const char *cert_file, *key_file;
    SSL_CTX *ctx;       /* owned; connections hold references of their own */
    BIO_METHOD *method; /* owned: a BIO over a struct tls */
};

struct tls {
    SSL *ssl; /* owned */
    bool http, begun;
    const char *in; /* received, during tls_receive only */
    size_t in_len;
    struct buffer out;
    char problem[160];
};

/* ---- the certificate ---- */

/* A key with a password would make OpenSSL ask for it at the terminal. */
static int no_password(char *buf, int size, int rwflag, void *ctx) {
    (void)buf, (void)size, (void)rwflag, (void)ctx;
    return 0;
}

static const char *reason(void) {
    unsigned long code = ERR_peek_error(); /* the first: what lies at the bottom */
    if (ERR_SYSTEM_ERROR(code))
        return strerror(ERR_GET_REASON(code));
    const char *text = ERR_reason_error_string(code);
    return text ? text : "unknown error";
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                           const unsigned char *in, unsigned in_len, void *ctx) {
    static const unsigned char http[] = "\x08http/1.1";
    const struct tls *t = SSL_get_app_data(ssl);
    (void)ctx;
    if (!t->http)
        return SSL_TLSEXT_ERR_NOACK;
    if (SSL_select_next_proto((unsigned char **)out, out_len, http, sizeof http - 1, in, in_len) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_NOACK;
    return SSL_TLSEXT_ERR_OK;
}

static int load_files(const struct tls_server *s, SSL_CTX *ctx, struct error *error) {
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ctx, s->cert_file) != 1)
        return error_set(error, ERR_CONFIG, "--tls-cert %s: %s", s->cert_file, reason());
    if (SSL_CTX_use_PrivateKey_file(ctx, s->key_file, SSL_FILETYPE_PEM) != 1)
        return error_set(error, ERR_CONFIG, "--tls-key %s: %s", s->key_file, reason());
    if (SSL_CTX_check_private_key(ctx) != 1)
        return error_set(error, ERR_CONFIG, "--tls-key %s does not belong to --tls-cert %s",
                         s->key_file, s->cert_file);
    return 0;
}

static int create_context(const struct tls_server *s, SSL_CTX **out, struct error *error) {
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    *out = NULL;
    if (!ctx)
        return error_set(error, ERR_INTERNAL, "OpenSSL: %s", reason());
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS); /* idle connections hold little */
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_default_passwd_cb(ctx, no_password);
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    int rc = load_files(s, ctx, error);
    if (rc != 0)
        SSL_CTX_free(ctx);
    else
        *out = ctx;
    return rc;
}

int tls_server_reload(struct tls_server *s, struct error *error) {
    SSL_CTX *ctx;
    int rc = create_context(s, &ctx, error);
    if (rc != 0)
        return rc;
    SSL_CTX_free(s->ctx);
    s->ctx = ctx;
    return 0;
}

/* ---- bytes from and to the connection ---- */

static int bio_read(BIO *bio, char *data, size_t len, size_t *got) {
    struct tls *t = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    *got = len < t->in_len ? len : t->in_len;
    if (*got == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    memcpy(data, t->in, *got);
    t->in += *got;
    t->in_len -= *got;
    return 1;
}

static int bio_write(BIO *bio, const char *data, size_t len, size_t *sent) {
    struct tls *t = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    buffer_append(&t->out, data, len);
    *sent = len;
    return 1;
}

static long bio_ctrl(BIO *bio, int cmd, long num, void *ptr) {
    (void)bio, (void)num, (void)ptr;
    return cmd == BIO_CTRL_FLUSH;
}

int tls_server_create(const char *cert_file, const char *key_file, struct tls_server **out,
                      struct error *error) {
    struct tls_server *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->cert_file = cert_file;
    s->key_file = key_file;
    int rc = create_context(s, &s->ctx, error);
    if (rc != 0) {
        tls_server_destroy(s);
        return rc;
    }
    s->method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "connection");
    CHECK(s->method, "BIO_meth_new: %s", reason());
    BIO_meth_set_read_ex(s->method, bio_read);
    BIO_meth_set_write_ex(s->method, bio_write);
    BIO_meth_set_ctrl(s->method, bio_ctrl);
    *out = s;
    return 0;
}

void tls_server_destroy(struct tls_server *s) {
    if (!s)
        return;
    SSL_CTX_free(s->ctx);
    BIO_meth_free(s->method);
    free(s);
}

/* ---- one connection ---- */

struct tls *tls_open(const struct tls_server *s, bool http) {
    struct tls *t = xcalloc(1, sizeof *t);
    BIO *bio = BIO_new(s->method);
    t->ssl = SSL_new(s->ctx);
    CHECK(bio && t->ssl, "OpenSSL: %s", reason());
    t->http = http;
    BIO_set_data(bio, t);
    BIO_set_init(bio, 1);
    SSL_set_bio(t->ssl, bio, bio); /* takes it over */
    SSL_set_app_data(t->ssl, t);
    SSL_set_accept_state(t->ssl);
    return t;
}

void tls_close(struct tls *t) {
    if (!t)
        return;
    SSL_free(t->ssl);
    buffer_deinit(&t->out);
    free(t);
}

bool tls_is_ready(const struct tls *t) {
    return SSL_is_init_finished(t->ssl);
}

static enum tls_result failed(struct tls *t) {
    snprintf(t->problem, sizeof t->problem, "%s", reason());
    ERR_clear_error();
    return TLS_FAILED;
}

/* SSL_read goes through the handshake too. */
static enum tls_result decrypt(struct tls *t, struct buffer *plain) {
    for (;;) {
        size_t got = 0;
        buffer_reserve(plain, READ_BYTES);
        ERR_clear_error();
        int rc = SSL_read_ex(t->ssl, plain->data + plain->len, READ_BYTES, &got);
        plain->len += got;
        if (rc == 1)
            continue;
        switch (SSL_get_error(t->ssl, rc)) {
        case SSL_ERROR_WANT_READ:
            return TLS_OPEN;
        case SSL_ERROR_ZERO_RETURN:
            return TLS_ENDED;
        default:
            return failed(t);
        }
    }
}

enum tls_result tls_receive(struct tls *t, const char *data, size_t len, struct buffer *plain) {
    if (!t->begun && len > 0 && data[0] != HANDSHAKE_RECORD) {
        snprintf(t->problem, sizeof t->problem, "no TLS handshake");
        return TLS_NOT_TLS;
    }
    t->begun = true;
    t->in = data;
    t->in_len = len;
    enum tls_result result = decrypt(t, plain);
    t->in = NULL;
    t->in_len = 0;
    return result;
}

bool tls_send(struct tls *t, const char *data, size_t len) {
    size_t sent = 0;
    ERR_clear_error();
    if (len == 0 || SSL_write_ex(t->ssl, data, len, &sent) == 1)
        return true;
    failed(t);
    return false;
}

void tls_end(struct tls *t) {
    ERR_clear_error();
    if (tls_is_ready(t))
        SSL_shutdown(t->ssl);
    ERR_clear_error();
}

struct buffer *tls_output(struct tls *t) {
    return &t->out;
}

const char *tls_problem(const struct tls *t) {
    return t->problem;
}
