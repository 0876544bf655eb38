/* server_check: what of a server's options can be judged before anything is bound or loaded, for
 * `serve` and for `config --check` alike. Pure but for asking the name server and reading a
 * certificate; nothing is logged. Any thread.
 */
#pragma once

#include <stdbool.h>

#include "host/error.h"
#include "net/server.h"

#ifdef __cplusplus
extern "C" {
#endif

/* May an address be served that is `local` (address_is_local) or not? ERR_CONFIG with the option it
 * was given with, where other machines could use the server without a key. */
int server_check_exposure(const struct server_options *o, const char *option, const char *address,
                          bool local, struct error *error);

/* Both listeners off, a certificate without its key, addresses that do not resolve or are exposed.
 * ERR_CONFIG with the option's name; ERR_IO when the name server does not answer, ERR_NO_MEMORY.
 * o->keys count as they are. */
int server_check_options(const struct server_options *o, struct error *error);
/* Do certificate and key, where there are any, load? Reads them, which may be possible only once
 * (a pipe): not for a server that will load them itself. ERR_CONFIG with the option's name. */
int server_check_certificate(const struct server_options *o, struct error *error);

#ifdef __cplusplus
}
#endif
