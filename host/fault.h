/* fault: a rank that misbehaves on purpose, for tests of what the others and the clients see of it.
 *
 * "KIND@RANK:STEP[:LAYER]", e.g. "stall@2:17": in step 17 (counted from 1) rank 2, between its FFN
 * of the layer (default: the middle one) and the sum over the ranks,
 *   kill    its thread ends
 *   stall   never goes on
 *   nan     hands NaNs to the others
 */
#pragma once

#include <stdint.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum fault_kind { FAULT_NONE, FAULT_KILL, FAULT_STALL, FAULT_NAN };

struct fault {
    enum fault_kind kind;
    int32_t rank;
    int64_t step;
    int32_t layer; /* -1: the middle one */
};

/* NULL: no fault. ERR_CONFIG for anything else that is none. */
int fault_parse(const char *text, struct fault *out, struct error *error);

#ifdef __cplusplus
}
#endif
