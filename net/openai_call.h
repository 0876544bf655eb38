/* openai_call: one request of the API, from its body to its answer.
 *
 *   body -> job (loop or worker pool) -> a choice for each of n answers to each prompt, submitted
 *   -> events -> chunks of a stream, or one object when the last choice is done
 *
 * The status is decided by what is known before anything was generated: 400 for what cannot be,
 * 429 where the engine or the key's limits refuse, else 200. A failure after the first chunk of a
 * stream comes as an error event in it. When the client is gone, or one choice has failed, the
 * others are cancelled; the call lives until the engine's last event for each of them, and is then
 * logged in one line: with the first error, else the reason of the choice that ended last, and the
 * tokens of all choices.
 */
#pragma once

#include "net/openai.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Takes over the exchange. */
void openai_call_start(struct openai *o, enum openai_kind kind, struct http_exchange *x);
/* At the end of the server: no event will come any more. */
void openai_call_destroy(struct openai_call *call);

#ifdef __cplusplus
}
#endif
