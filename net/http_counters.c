#include "net/http_counters.h"

#include <string.h>

/* The last entry is kept for what exceeds the table. */
static struct http_counter *entry_of(struct http_counters *c, const char *path, int status) {
    for (int32_t i = 0; i < c->num_entries; i++)
        if (c->entries[i].status == status && !strcmp(c->entries[i].path, path))
            return &c->entries[i];
    if (c->num_entries == MAX_HTTP_COUNTERS)
        return &c->entries[MAX_HTTP_COUNTERS - 1];
    struct http_counter *e = &c->entries[c->num_entries++];
    if (c->num_entries == MAX_HTTP_COUNTERS)
        *e = (struct http_counter){.path = "other"};
    else
        *e = (struct http_counter){.path = path, .status = status};
    return e;
}

void http_counters_add(struct http_counters *c, const char *path, int status) {
    entry_of(c, path ? path : "other", status)->count++;
}
