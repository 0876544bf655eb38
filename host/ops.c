#include "ops.h"

#include <string.h>

float tensor_source_at(const struct tensor_source *s, int64_t i) {
    size_t size = dtype_bytes(s->dtype);
    uint32_t element = 0;
    if (!s->data)
        return weights_dummy_value(s, i);
    memcpy(&element, (const char *)s->data + (size_t)i * size, size);
    return dtype_load(s->dtype, &element, 0);
}
