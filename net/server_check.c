#include "net/server_check.h"

#include <string.h>

#include "net/address.h"
#include "net/keys.h"
#include "net/tls.h"

/* Whoever reaches the address may use the server; so nobody else's machine shall, without a key. */
int server_check_exposure(const struct server_options *o, const char *option, const char *address,
                          bool local, struct error *error) {
    if (local || o->insecure || (o->keys && keys_required(o->keys)))
        return 0;
    return error_set(error, ERR_CONFIG,
                     "%s %s: other machines could use the server without a key; give one with "
                     "--api-key or --api-key-file, or allow it with --insecure",
                     option, address);
}

static int check_address(const struct server_options *o, const char *option, const char *text,
                         struct error *error) {
    struct address a;
    struct error why = {0};
    int rc = address_resolve(text, &a, &why);
    if (rc != 0)
        return error_set(error, rc, "%s %s", option, why.text);
    return a.off ? 0 : server_check_exposure(o, option, text, address_is_local(&a), error);
}

int server_check_certificate(const struct server_options *o, struct error *error) {
    struct tls_server *tls = NULL;
    if (!o->tls_cert)
        return 0;
    int rc = tls_server_create(o->tls_cert, o->tls_key, &tls, error);
    tls_server_destroy(tls);
    return rc;
}

int server_check_options(const struct server_options *o, struct error *error) {
    if (!strcmp(o->listen, "off") && !strcmp(o->http, "off"))
        return error_set(error, ERR_CONFIG,
                         "--listen off and --http off: the server would hear nobody");
    if (!o->tls_cert != !o->tls_key)
        return error_set(error, ERR_CONFIG, "%s: --tls-cert and --tls-key must be given together",
                         o->tls_cert ? "--tls-cert" : "--tls-key");
    int rc = check_address(o, "--listen", o->listen, error);
    return rc ? rc : check_address(o, "--http", o->http, error);
}
