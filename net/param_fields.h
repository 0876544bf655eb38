/* param_fields: fields of a request that are read alike in every protocol, into request_params.
 *
 * Errors are ERR_INVALID_REQUEST with the field, as in fields.h. Pure functions, any thread. */
#pragma once

#include "host/engine.h"
#include "net/fields.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An integer. */
int param_read_seed(struct request_params *out, const char *name, json_t *value,
                    struct field_error *error);
/* A string, or an array of up to MAX_REQUEST_STOPS of them; added to those that are there. */
int param_read_stop(struct request_params *out, const char *name, json_t *value,
                    struct field_error *error);
/* An array of token ids below vocab_size, whose type was looked at. *ids is the caller's to free,
 * also after an error; *num is set at the end. */
int param_read_ids(int32_t **ids, int32_t *num, const char *path, json_t *array, int32_t vocab_size,
                   struct field_error *error);
/* The name of a role: a short string, borrowed from the document. */
int param_read_role(const char **out, const char *path, json_t *value, struct field_error *error);
/* Is min_tokens within max_tokens (0: as many as fit)? One that the request `doc` does not give is
 * the server's default, and gives way. */
int param_check_lengths(struct request_params *p, json_t *doc, struct field_error *error);

#ifdef __cplusplus
}
#endif
