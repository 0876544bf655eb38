/* libFuzzer: any bytes as what an HTTP client sends. The first byte says in which pieces they
 * arrive; what they are understood as must not depend on it. What http_head passes keeps the rules
 * that it promises. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "host/error.h"
#include "tests/http_transcript.h"

enum { MAX_BODY = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Rules that hold for every head that is passed, whatever the code that checks them. */
static void check_head(const char *bytes, size_t size) {
    struct http_head head;
    size_t used = 0;
    int hosts = 0, lengths = 0, codings = 0;
    http_head_init(&head);
    if (http_head_feed(&head, bytes, size, &used) == HTTP_HEAD_COMPLETE) {
        CHECK(used <= size && head.num_fields <= HTTP_MAX_HEADERS, "limits");
        CHECK(head.path && head.query && head.content_length >= 0, "fields");
        for (int32_t i = 0; i < head.num_fields; i++) {
            hosts += !strcasecmp(head.fields[i].name, "host");
            lengths += !strcasecmp(head.fields[i].name, "content-length");
            codings += !strcasecmp(head.fields[i].name, "transfer-encoding");
            CHECK(!strpbrk(head.fields[i].value, "\r\n"), "a line end in a value");
            CHECK(head.fields[i].name[strcspn(head.fields[i].name, " \t\r\n:")] == '\0', "name");
        }
        CHECK(hosts <= 1 && lengths + codings <= 1, "%d %d %d", hosts, lengths, codings);
        CHECK(hosts == 1 || head.version_minor == 0, "no host");
        CHECK(head.chunked == (codings == 1), "chunked");
    } else if (head.problem.status) {
        CHECK(head.problem.status >= 400 && head.problem.status <= 505, "status");
        CHECK(!http_head_value(&head, ""), "a header without a name"); /* looks at all of them */
    } else {
        CHECK(!http_head_value(&head, "host"), "a header before the head is complete");
    }
    http_head_deinit(&head);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct buffer whole = {0}, pieces = {0};
    if (size < 1)
        return 0;
    /* A copy of its own, so that reading past its end is found. */
    char *bytes = malloc(size);
    memcpy(bytes, data + 1, size - 1);
    size_t piece = (size_t)data[0] + 1;
    http_transcribe(bytes, size - 1, size, 1, MAX_BODY, &whole);
    http_transcribe(bytes, size - 1, piece, piece, MAX_BODY, &pieces);
    CHECK(whole.len == pieces.len &&
              (whole.len == 0 || !memcmp(whole.data, pieces.data, whole.len)),
          "the result depends on pieces of %zu bytes", piece);
    check_head(bytes, size - 1);
    buffer_deinit(&whole);
    buffer_deinit(&pieces);
    free(bytes);
    return 0;
}
