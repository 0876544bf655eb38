/* TLS on both listeners, with a client of OpenSSL's and certificates made for the test. */
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/log.h"
#include "tests/http_client.h"
#include "tests/shim.h"

#define HOST "Host: h\r\n"

/* ---- certificates ---- */

struct tls_files {
    char cert[300], key[300];
};

/* Writes a self-signed certificate of this name, and its key. */
static void make_files(struct tls_files *f, const char *name) {
    snprintf(f->cert, sizeof f->cert, "%s/tls-cert.pem", shim_scratch_dir());
    snprintf(f->key, sizeof f->key, "%s/tls-key.pem", shim_scratch_dir());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_NAME *subject = X509_get_subject_name(cert);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(cert, subject);
    EXPECT_INT_GT(X509_sign(cert, key, EVP_sha256()), 0);
    FILE *out = fopen(f->cert, "w");
    EXPECT_INT_EQ(PEM_write_X509(out, cert), 1);
    fclose(out);
    out = fopen(f->key, "w");
    EXPECT_INT_EQ(PEM_write_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL), 1);
    fclose(out);
    X509_free(cert);
    EVP_PKEY_free(key);
}

/* ---- a client ---- */

struct tls_client {
    struct net_client tcp;
    SSL_CTX *ctx;
    SSL *ssl;
};

/* Connects; max_version 0: any. Returns whether the handshake succeeded. */
static bool tls_client_open(struct tls_client *c, const char *address, const char *alpn,
                            int max_version) {
    memset(c, 0, sizeof *c);
    if (!net_client_open(&c->tcp, address, 0))
        return false;
    c->ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_security_level(c->ctx, 0);
    SSL_CTX_set_max_proto_version(c->ctx, max_version);
    c->ssl = SSL_new(c->ctx);
    if (alpn)
        SSL_set_alpn_protos(c->ssl, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    SSL_set_fd(c->ssl, c->tcp.fd);
    return SSL_connect(c->ssl) == 1;
}

static void tls_client_close(struct tls_client *c) {
    SSL_free(c->ssl);
    SSL_CTX_free(c->ctx);
    net_client_close(&c->tcp);
    ERR_clear_error();
}

static void tls_puts(struct tls_client *c, const char *text) {
    EXPECT_INT_EQ(SSL_write(c->ssl, text, (int)strlen(text)), strlen(text));
}

/* Reads until `end` has come, or the connection's end; NUL-terminated in out. */
static void tls_until(struct tls_client *c, const char *end, struct buffer *out) {
    char piece[4096];
    int n;
    buffer_clear(out);
    buffer_putc(out, '\0');
    while (!(end && strstr(out->data, end)) && (n = SSL_read(c->ssl, piece, sizeof piece)) > 0) {
        out->len--;
        buffer_append(out, piece, (size_t)n);
        buffer_putc(out, '\0');
    }
}

static void name_of_peer(struct tls_client *c, char out[64]) {
    X509 *cert = SSL_get1_peer_certificate(c->ssl);
    X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, out, 64);
    X509_free(cert);
}

static bool start(struct http_rig *r, const struct tls_files *files) {
    r->f.options.tls_cert = files->cert;
    r->f.options.tls_key = files->key;
    return EXPECT_TRUE(net_fixture_start(&r->f));
}

/* ---- tests ---- */

TEST(Tls, BothProtocolsAreServed) {
    static const int versions[] = {0, TLS1_2_VERSION};
    struct tls_files files;
    struct http_rig r;
    struct tls_client c;
    struct buffer out = {0};
    http_rig_init(&r);
    make_files(&files, "first");
    ASSERT_TRUE(start(&r, &files));
    for (int i = 0; i < 2; i++) {
        const unsigned char *chosen;
        unsigned len;
        ASSERT_TRUE(tls_client_open(&c, net_fixture_http(&r.f), "\x02h2\x08http/1.1", versions[i]));
        SSL_get0_alpn_selected(c.ssl, &chosen, &len);
        EXPECT_INT_EQ(len, 8);
        tls_puts(&c, "GET /version HTTP/1.1\r\n" HOST "\r\nGET /stream?2 HTTP/1.1\r\n" HOST "\r\n");
        tls_until(&c, "0\r\n\r\n", &out);
        EXPECT_TRUE(strstr(out.data, "{\"version\":") && strstr(out.data, "data: 1\n\n"));
        tls_puts(&c, "GET /big?5000000 HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
        tls_until(&c, NULL, &out);
        EXPECT_INT_GT(out.len, 5000000);
        /* The end is said within TLS, too: nobody can cut an answer short unnoticed. */
        EXPECT_INT_EQ(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN, SSL_RECEIVED_SHUTDOWN);
        tls_client_close(&c);
        ASSERT_TRUE(tls_client_open(&c, net_fixture_address(&r.f), NULL, versions[i]));
        tls_puts(&c, "{\"id\":1,\"prompt\":\"Once upon\",\"max_tokens\":4}\n");
        tls_until(&c, "\"done\":true", &out);
        EXPECT_TRUE(strstr(out.data, "\"done\":true") != NULL);
        tls_client_close(&c);
    }
    EXPECT_FALSE(tls_client_open(&c, net_fixture_http(&r.f), NULL, TLS1_1_VERSION));
    tls_client_close(&c);
    buffer_deinit(&out);
    http_rig_stop(&r);
}

/* Byte for byte what the line protocol says without TLS, with many long lines on the way. */
TEST(Tls, ManyLinesArriveWhole) {
    enum { LINES = 300, BYTES = 20000 };
    struct tls_files files;
    struct http_rig r;
    struct tls_client c;
    struct buffer line = {0}, out = {0};
    http_rig_init(&r);
    make_files(&files, "first");
    ASSERT_TRUE(start(&r, &files));
    ASSERT_TRUE(tls_client_open(&c, net_fixture_address(&r.f), NULL, 0));
    for (int i = 0; i < LINES; i++) {
        buffer_clear(&line);
        buffer_printf(&line, "{\"op\":\"tokenize\",\"id\":%d,\"text\":\"", i);
        for (int k = 0; k < BYTES; k++)
            buffer_putc(&line, 'a');
        buffer_puts(&line, "\"}\n");
        EXPECT_INT_EQ(SSL_write(c.ssl, line.data, (int)line.len), line.len);
        if (i % 10 == 9) { /* answers are large: they are read now and then */
            char end[32];
            snprintf(end, sizeof end, "{\"id\":%d,", i);
            tls_until(&c, end, &out);
            EXPECT_TRUE(strstr(out.data, end) != NULL);
        }
    }
    tls_client_close(&c);
    buffer_deinit(&line);
    buffer_deinit(&out);
    http_rig_stop(&r);
}

TEST(Tls, WhoDoesNotSpeakItIsToldSo) {
    struct tls_files files;
    struct http_rig r;
    struct net_client c;
    struct http_answer a = {0};
    http_rig_init(&r);
    make_files(&files, "first");
    ASSERT_TRUE(start(&r, &files));
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    http_client_ask(&c, "GET /version HTTP/1.1\r\n" HOST "\r\n", &a);
    EXPECT_INT_EQ(a.status, 400);
    EXPECT_STR_EQ(a.body.data, "This port speaks TLS: use https.\n");
    net_client_close(&c);
    ASSERT_TRUE(net_client_open(&c, net_fixture_address(&r.f), 0));
    net_client_puts(&c, "{\"op\":\"ping\"}");
    EXPECT_STR_EQ(net_client_rest(&c), "error: this port speaks TLS\n");
    net_client_close(&c);
    /* The beginning of a handshake, then anything. */
    static const char broken[] = "\x16\x03\x01\x00\x05hello, I am not TLS at all";
    ASSERT_TRUE(net_client_open(&c, net_fixture_http(&r.f), 0));
    net_client_send(&c, broken, sizeof broken);
    EXPECT_TRUE(net_client_ended(&c, 5000));
    net_client_close(&c);
    struct tls_client good;
    EXPECT_TRUE(tls_client_open(&good, net_fixture_http(&r.f), NULL, 0));
    tls_client_close(&good);
    http_answer_deinit(&a);
    http_rig_stop(&r);
}

TEST(Tls, AHandshakeThatIsNotFinishedIsGivenUp) {
    struct tls_files files;
    struct http_rig r;
    struct net_client c;
    http_rig_init(&r);
    make_files(&files, "first");
    r.f.options.http_timeouts.first_byte_ms = 300;
    ASSERT_TRUE(start(&r, &files));
    for (int i = 0; i < 2; i++) {
        ASSERT_TRUE(net_client_open(&c, i ? net_fixture_address(&r.f) : net_fixture_http(&r.f), 0));
        net_client_send(&c, "\x16\x03\x01", 3);
        EXPECT_TRUE(net_client_ended(&c, 3000));
        net_client_close(&c);
    }
    http_rig_stop(&r);
}

TEST(Tls, AClientThatLeavesIsNoticed) {
    struct tls_files files;
    struct http_rig r;
    struct tls_client c;
    struct buffer out = {0};
    http_rig_init(&r);
    make_files(&files, "first");
    ASSERT_TRUE(start(&r, &files));
    for (int i = 0; i < 2; i++) {
        ASSERT_TRUE(tls_client_open(&c, net_fixture_http(&r.f), NULL, 0));
        tls_puts(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
        tls_until(&c, "held", &out);
        if (i)
            SSL_shutdown(c.ssl); /* by close_notify alone */
        else
            net_client_close(&c.tcp);
        http_rig_wait(&r.gone, i + 1);
        tls_client_close(&c);
    }
    buffer_deinit(&out);
    http_rig_stop(&r);
}

static struct server *to_reload;
static int reload_rc;

static void reload(void *ctx, struct http_exchange *x) {
    struct error e = {0};
    (void)ctx;
    reload_rc = server_reload_tls(to_reload, &e);
    http_answer(x, 200, "text/plain", "ok", 2);
}

TEST(Tls, ACertificateIsLoadedAnewForNewConnections) {
    const struct http_route routes[] = {{HTTP_GET, "/reload", true, reload, NULL, true, false},
                                        {HTTP_GET, NULL, false, NULL, NULL, false, false}};
    static const char ask[] = "GET /reload HTTP/1.1\r\n" HOST "\r\n";
    struct tls_files files;
    struct http_rig r;
    struct tls_client old, c;
    struct buffer out = {0};
    char name[64];
    http_rig_init(&r);
    r.f.routes = routes;
    make_files(&files, "first");
    ASSERT_TRUE(start(&r, &files));
    to_reload = r.f.server;
    ASSERT_TRUE(tls_client_open(&old, net_fixture_http(&r.f), NULL, 0));
    make_files(&files, "second");
    tls_puts(&old, ask);
    tls_until(&old, "\r\n\r\nok", &out);
    EXPECT_INT_EQ(reload_rc, 0);
    ASSERT_TRUE(tls_client_open(&c, net_fixture_http(&r.f), NULL, 0));
    name_of_peer(&c, name);
    EXPECT_STR_EQ(name, "second");
    tls_client_close(&c);
    /* Files that are no good change nothing. */
    FILE *f = fopen(files.cert, "w");
    fputs("nonsense", f);
    fclose(f);
    tls_puts(&old, ask);
    tls_until(&old, "\r\n\r\nok", &out);
    EXPECT_INT_EQ(reload_rc, ERR_CONFIG);
    ASSERT_TRUE(tls_client_open(&c, net_fixture_http(&r.f), NULL, 0));
    name_of_peer(&c, name);
    EXPECT_STR_EQ(name, "second");
    tls_client_close(&c);
    tls_client_close(&old);
    buffer_deinit(&out);
    http_rig_stop(&r);
}

TEST(Tls, FilesThatDoNotFitAreRefusedWithTheirNames) {
    struct tls_files files, others;
    struct server_options o;
    struct server *s;
    struct error e = {0};
    char saved[400];
    server_options_default(&o);
    o.listen = "127.0.0.1:0";
    o.http = "off";
    make_files(&files, "first");
    snprintf(saved, sizeof saved, "%s.old", files.key);
    rename(files.key, saved);
    make_files(&others, "second");
    o.tls_cert = others.cert;
    EXPECT_INT_EQ(server_create(&o, &s, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "together") != NULL);
    o.tls_key = saved; /* of the other certificate */
    EXPECT_INT_EQ(server_create(&o, &s, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "--tls-key") != NULL);
    o.tls_key = "/nowhere.pem";
    EXPECT_INT_EQ(server_create(&o, &s, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "/nowhere.pem") && strstr(e.text, "No such file"));
    o.tls_cert = "/nowhere.pem";
    EXPECT_INT_EQ(server_create(&o, &s, &e), ERR_CONFIG);
    EXPECT_TRUE(strstr(e.text, "--tls-cert /nowhere.pem") != NULL);
}

/* As of `--tls-key <(decrypt KEY)`: it can be read once. */
TEST(Tls, AKeyMayComeThroughAPipe) {
    struct tls_files files;
    struct server_options o;
    struct server *s;
    struct error e = {0};
    char key[4096], path[64];
    int fds[2];
    make_files(&files, "piped");
    FILE *f = fopen(files.key, "r");
    size_t len = fread(key, 1, sizeof key, f);
    fclose(f);
    ASSERT_INT_EQ(pipe(fds), 0);
    EXPECT_INT_EQ(write(fds[1], key, len), len);
    close(fds[1]);
    snprintf(path, sizeof path, "/dev/fd/%d", fds[0]);
    server_options_default(&o);
    o.listen = "127.0.0.1:0";
    o.http = "off";
    o.tls_cert = files.cert;
    o.tls_key = path;
    if (EXPECT_INT_EQ(server_create(&o, &s, &e), 0))
        server_destroy(s);
    else
        FAIL("%s", e.text);
    close(fds[0]);
}
