/* line_answer: the JSON lines that the server sends (docs/PROTOCOL.md).
 *
 * Pure functions that append to a buffer. Every line they write is valid UTF-8 and valid JSON
 * whatever they are given: text is repaired, numbers that JSON cannot say are replaced. `id` is the
 * request's id as a JSON literal; NULL is written as null.
 */
#pragma once

#include <stdint.h>

#include "host/buffer.h"
#include "host/dispatch.h"
#include "net/line_protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

/* {"id":1,"error":{"code":"invalid_request","message":"...","param":"prompt"}} and LF. Codes that
 * are not the protocol's own are sent as "internal". param NULL or "" is left out. */
void answer_error(struct buffer *out, const char *id, int code, const char *param,
                  const char *message);

/* Text of `error: ...` for plain clients, on one line, LF included. */
void answer_plain_error(struct buffer *out, const char *message);

/* {"id":1,"text":"5","token":53} and LF, with logprob and top_logprobs when the event has them. */
void answer_token(struct buffer *out, const char *id, const struct engine_event *e);

/* {"id":1,"text":"..."} and LF: text that was held back until the end and belongs to no one token.
 */
void answer_held_text(struct buffer *out, const char *id, const char *text, size_t len);

/* One position of `logprobs`: {"token":5,"logprob":-0.1,"top_logprobs":[[5,-0.1],...]}, no LF. */
void answer_position(struct buffer *out, int32_t token, const struct token_logprobs *l);

/* The done line of an EVENT_DONE. For a request with "stream":false, `text` holds the whole text,
 * else it is NULL; `logprobs` holds answer_position of every token, comma-separated, or is NULL. */
void answer_done(struct buffer *out, const char *id, const struct engine_event *e,
                 const struct buffer *text, const struct buffer *logprobs);

void answer_ping(struct buffer *out, const char *id);
void answer_stats(struct buffer *out, const char *id, const struct dispatch_stats *stats,
                  int32_t connections);
void answer_model(struct buffer *out, const char *id, const struct engine_model_info *m);
void answer_tokenize(struct buffer *out, const char *id, const int32_t *ids, size_t count);
void answer_detokenize(struct buffer *out, const char *id, const char *text, size_t len);

#ifdef __cplusplus
}
#endif
