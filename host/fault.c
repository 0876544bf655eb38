#include "fault.h"

#include <stdio.h>
#include <string.h>

int fault_parse(const char *text, struct fault *out, struct error *error) {
    static const char *const kinds[] = {"kill", "stall", "nan"};
    char kind[8];
    long long step = 0;
    int end = -1;
    *out = (struct fault){.layer = -1};
    if (!text)
        return 0;
    if (sscanf(text, "%7[a-z]@%d:%lld%n:%d%n", kind, &out->rank, &step, &end, &out->layer, &end) >=
            3 &&
        text[end] == 0 && out->rank >= 0 && step > 0 && out->layer >= -1)
        for (int i = 0; i < 3; i++)
            if (!strcmp(kind, kinds[i]))
                out->kind = (enum fault_kind)(FAULT_KILL + i);
    out->step = step;
    if (out->kind == FAULT_NONE)
        return error_set(error, ERR_CONFIG,
                         "--fault %s: expected kill, stall or nan, @RANK:STEP[:LAYER]", text);
    return 0;
}
