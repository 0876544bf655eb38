/* libFuzzer: any bytes as a safetensors file. Of what is accepted every byte is read. */
#include "host/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_accepted(const struct safetensors *s, const uint8_t *data, size_t size) {
    volatile uint8_t sink; /* keeps the reads */
    size_t bytes = 0;
    for (size_t i = 0; i < safetensors_count(s); i++) {
        const struct tensor_view *t = safetensors_at(s, i);
        const uint8_t *p = t->data;
        CHECK(p >= data + 8 && p + t->bytes <= data + size, "data of %s", t->name);
        CHECK(t->ndim >= 0 && t->ndim <= TENSOR_MAX_DIMS, "ndim of %s", t->name);
        CHECK(safetensors_find(s, t->name) == t, "%s is not found", t->name);
        for (size_t k = 0; k < t->bytes; k++)
            sink = p[k];
        if (t->dtype != DTYPE_NONE) {
            int64_t elements = 1;
            for (int32_t d = 0; d < t->ndim; d++)
                elements *= t->shape[d];
            CHECK((size_t)elements * dtype_bytes(t->dtype) == t->bytes, "size of %s", t->name);
        }
        bytes += t->bytes;
    }
    CHECK(bytes <= size - 8, "%zu bytes of tensors in %zu", bytes, size);
    (void)sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors *s;
    struct error e = {0};
    int rc = safetensors_open_memory(data, size, "fuzz", &s, &e);
    CHECK(rc == e.code && (rc == 0) == (e.text[0] == 0), "code %d, message \"%s\"", rc, e.text);
    if (rc == 0) {
        check_accepted(s, data, size);
        safetensors_close(s);
    }
    return 0;
}
