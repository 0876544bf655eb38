/* keys: who may use the server, and how much.
 *
 * Keys come from --api-key and from --api-key-file, a line each:
 *
 *   KEY [name=NAME] [max-requests=N] [tokens-per-minute=N]      # comment
 *
 * A key is kept as its SHA-256, and one that a client shows is compared by its SHA-256 with every
 * key there is, each in constant time: how long it takes says nothing about any of them. Keys are
 * never logged; their names are ("key-3" where there is none).
 *
 * Limits. A key's running requests are counted (of n answers each is one), and its tokens, of
 * prompts and answers, within a minute: a bucket that refills all the time and holds a minute's
 * worth. A request is admitted when the bucket is not empty and its prompt has been taken from it;
 * answers may overdraw it, which the next request waits for. Loop thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct keys;    /* opaque */
struct api_key; /* opaque; lives as long as its keys, also when a reload has taken it away */

struct keys_options {
    const char *const *texts; /* [num_texts] of --api-key */
    int32_t num_texts;
    const char *file;          /* NULL: none */
    int32_t max_requests;      /* at once, of keys whose line says nothing; 0: any number */
    int64_t tokens_per_minute; /* likewise */
};

/* ERR_CONFIG with a message that never quotes a key, also for a file that cannot be read. Strings
 * are copied. */
int keys_create(const struct keys_options *o, struct keys **out, struct error *error);
void keys_destroy(struct keys *k); /* NULL is fine */
/* Reads the file again. On an error the keys stay as they were. */
int keys_reload(struct keys *k, struct error *error);

/* Are there any? Without keys everybody may use the server. */
bool keys_required(const struct keys *k);
/* NULL when none has this text. */
struct api_key *keys_find(struct keys *k, const char *text, size_t len);
/* False once a reload has taken it away. */
bool api_key_is_valid(const struct api_key *key);
/* For logs and metrics. */
const char *api_key_name(const struct api_key *key);

/* May this key begin so many requests at once, with so many prompt tokens in all? 0, then
 * api_key_end must follow; ERR_UNAUTHORIZED when a reload has taken the key away since keys_find;
 * ERR_INVALID_REQUEST for more than it may ever have; or ERR_OVERLOADED with a message and the
 * seconds after which it may be tried again. key may be NULL: no limits. */
int api_key_begin(struct api_key *key, int32_t num_requests, int64_t prompt_tokens, int64_t now_us,
                  double *retry_s, struct error *error);
/* Of a request that was begun and then not taken: its prompt's tokens were not computed. */
void api_key_refund(struct api_key *key, int64_t prompt_tokens);
/* That many have ended, with so many tokens generated in all. */
void api_key_end(struct api_key *key, int32_t num_requests, int64_t completion_tokens,
                 int64_t now_us);

#ifdef __cplusplus
}
#endif
