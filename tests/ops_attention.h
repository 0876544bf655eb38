/* ops_attention: a paged context for the attention tests: random queries, keys and values that
 * depend on (sequence, position) alone, written through the ops of one filling. */
#pragma once

#include "tests/ops_fixture.h"

enum { MAX_SEQS = 8, MAX_CONTEXT = 1040 };

/* What a test varies. */
struct heads_case {
    int32_t Hq, Hkv, D;
    const int32_t *kv_head; /* [Hq]; NULL: Hq / Hkv query heads each */
    int32_t window;
    enum dtype kv_dtype;
    enum qk_norm norm;
    float clip;
};

/* Rows [pos0, pos0 + n) of sequence seq, in one step. */
struct chunk {
    int32_t seq, pos0, n;
};

struct session; /* opaque: a backend and its KV blocks */

struct session *session_open(const struct ops *ops, int32_t threads, const struct heads_case *c);
void session_close(struct session *s);

/* Writes positions [0, n) of a sequence into its blocks, which are poisoned before. */
void session_fill(struct session *s, int32_t seq, int32_t n);

/* From now on one element of that position's query, key or value, of every head, is a NaN. */
enum part { PART_Q, PART_K, PART_V };
void session_poison(struct session *s, enum part part, int32_t position);

/* One step: rotates and writes the chunks' rows, attends; out [T, Hq * D] guarded, the caller's. */
float *session_step(struct session *s, const struct chunk *chunks, int32_t num_chunks);

/* The rotated queries of the last step. [T, ld] with ld = (Hq + 2 Hkv) * D + 4 */
const float *session_qkv(const struct session *s);
/* The sums of squares of the last step. [T, 2] */
const double *session_sums(const struct session *s);
