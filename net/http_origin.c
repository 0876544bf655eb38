/* Origins: which web pages may use the server. See http_session.h.
 *
 * Any page can make the browser of somebody who visits it send requests here, without asking first
 * where they look like those of a form; and a name in its owner's DNS may become 127.0.0.1 while
 * the page is open, so that the browser takes the server for the page's own. A key keeps both
 * out, as no other page knows it. Without keys, what the browser says of the page must do.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "net/address.h"
#include "net/http_internal.h"
#include "net/keys.h"

static const char any_page[] = "*";

bool http_cors_allows(const struct http_exchange *x) {
    const char *allowed = x->session->shared->options->cors_origin;
    const char *origin = http_head_value(&x->head, "origin");
    return allowed && origin && (!strcmp(allowed, any_page) || !strcasecmp(allowed, origin));
}

/* ---- the origin ---- */

/* The host and port behind http:// or https://; NULL for what is neither. */
static const char *host_of_origin(const char *origin) {
    static const char *const schemes[] = {"http://", "https://"};
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (!strncasecmp(origin, schemes[i], strlen(schemes[i])))
            return origin + strlen(schemes[i]);
    return NULL;
}

/* Is the request of a page that came from here, or of no page? Behind a proxy that changes Host
 * the browser's own word for it must do; only browsers can set it. */
static bool is_same_origin(const struct http_exchange *x) {
    const char *origin = http_head_value(&x->head, "origin");
    const char *site = http_head_value(&x->head, "sec-fetch-site");
    const char *host = http_head_value(&x->head, "host");
    if (!origin || (site && !strcmp(site, "same-origin")))
        return true;
    const char *from = host_of_origin(origin);
    return from && host && !strcasecmp(from, host);
}

/* ---- the host ---- */

enum { MAX_NAME = 256 };

/* Copies the name of "NAME:PORT", without the dot that may end it. False when it is too long. */
static bool copy_name(const char *host, char out[MAX_NAME]) {
    size_t len = strcspn(host, ":/");
    if (len > 0 && host[len - 1] == '.')
        len--;
    if (len >= MAX_NAME)
        return false;
    memcpy(out, host, len);
    out[len] = '\0';
    return true;
}

static bool ends_in(const char *name, const char *end) {
    size_t len = strlen(name), end_len = strlen(end);
    return len > end_len && !strcasecmp(name + len - end_len, end);
}

/* Names that nobody can have in the Internet's DNS, and addresses. */
static bool is_private_name(const char *name) {
    struct in_addr address;
    return !strchr(name, '.') || ends_in(name, ".localhost") || ends_in(name, ".local") ||
           ends_in(name, ".internal") || inet_pton(AF_INET, name, &address) == 1;
}

/* Is it the host of --http or of --cors-origin? */
static bool is_configured_name(const struct server_options *o, const char *name) {
    char http[MAX_NAME], page[MAX_NAME], port[6];
    struct error unused;
    const char *host = o->cors_origin ? host_of_origin(o->cors_origin) : NULL;
    if (address_split(o->http, http, port, &unused) == 0 && !strcasecmp(http, name))
        return true;
    return host && copy_name(host, page) && !strcasecmp(page, name);
}

/* Clients of a loopback address mean this machine: their Host is its address or a name of its
 * own. On other addresses it may be any name. */
static bool is_own_host(const struct http_exchange *x) {
    const struct http_sessions *s = x->session->shared;
    const char *host = http_head_value(&x->head, "host");
    char name[MAX_NAME];
    if (!s->on_loopback || !host || *host == '[')
        return true;
    return copy_name(host, name) && (is_private_name(name) || is_configured_name(s->options, name));
}

/* ---- both ---- */

const char *http_foreign_page(const struct http_exchange *x) {
    const struct server_options *o = x->session->shared->options;
    if ((o->keys && keys_required(o->keys)) ||
        (o->cors_origin && !strcmp(o->cors_origin, any_page)))
        return NULL;
    if (!http_cors_allows(x) && !is_same_origin(x))
        return "a web page of another origin may not use this server: allow it with --cors-origin "
               "ORIGIN, or give the server keys (--api-key-file)";
    if (!is_own_host(x))
        return "the Host header has a name that is not known as this machine's: allow it with "
               "--cors-origin http://NAME, or give the server keys (--api-key-file)";
    return NULL;
}
