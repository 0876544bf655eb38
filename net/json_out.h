/* json_out: values of answers as JSON text. Valid UTF-8 and valid JSON whatever they are given. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"
#include "host/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A string literal; invalid UTF-8 is repaired (utf8.h). */
void json_out_text(struct buffer *out, const char *s, size_t len);
/* A string literal that tells all bytes apart: what is no UTF-8 becomes "bytes:\\xe2\\x96". */
void json_out_spelled(struct buffer *out, const char *s, size_t len);
void json_out_int(struct buffer *out, int64_t v);
/* Nine digits, which read back as the same float. What JSON cannot say, the logprob of a token
 * that has no chance, is -9999, as in vLLM. */
void json_out_logprob(struct buffer *out, float v);
/* ,"kv_blocks_used":...,"healthy":...: counters of an engine, as members of an object that has some
 * already. */
void json_out_counters(struct buffer *out, const struct engine_stats *s);

#ifdef __cplusplus
}
#endif
