/* stop: cuts a stream of text before the first stop string.
 *
 * Text that could be the beginning of a stop string is held back until it is clear that it is not,
 * so nothing of a stop string ever gets out, however the text is split into pieces. The first stop
 * string is the one whose last byte comes first (of several that end there, the longest): this does
 * not depend on the pieces either. Caller's memory; allocation-free once the buffers have grown.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/buffer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct stop_matcher {
    char *const *strings; /* [num_strings] NUL-terminated, non-empty, borrowed */
    int32_t num_strings;
    size_t longest;     /* bytes of the longest one */
    struct buffer held; /* owned: text that may turn out to begin a stop string */
};

void stop_init(struct stop_matcher *m, char *const *strings, int32_t num_strings);
void stop_deinit(struct stop_matcher *m);

/* Takes the next piece of text and appends to out what is certainly before any stop string. True
 * when one ends in this piece and `may_stop`; what follows it is dropped. Without may_stop (there
 * are too few tokens yet) strings that end in this piece are text like any other. */
bool stop_push(struct stop_matcher *m, const char *text, size_t len, bool may_stop,
               struct buffer *out);
/* The text has ended without a stop string: appends what was held back. */
void stop_flush(struct stop_matcher *m, struct buffer *out);

#ifdef __cplusplus
}
#endif
