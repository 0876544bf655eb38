#include "host/token_trie.h"

#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

struct entry {
    struct trie_text text;
    int32_t id;
};

static int by_text(const void *a, const void *b) {
    const struct entry *p = a, *q = b;
    uint32_t len = p->text.len < q->text.len ? p->text.len : q->text.len;
    int order = memcmp(p->text.data, q->text.data, len);
    if (order)
        return order;
    if (p->text.len != q->text.len)
        return p->text.len < q->text.len ? -1 : 1;
    return p->id < q->id ? -1 : 1;
}

static uint32_t shared_bytes(const struct trie_text *a, const struct trie_text *b) {
    uint32_t n = 0;
    while (n < a->len && n < b->len && a->data[n] == b->data[n])
        n++;
    return n;
}

/* Adds the nodes of a text behind those that it shares with the one before. */
static void add_text(struct token_trie *t, const struct entry *e, uint32_t shared,
                     uint32_t path[TRIE_MAX_DEPTH], uint32_t depth) {
    for (uint32_t d = depth; d > shared; d--)
        t->nodes[path[d - 1]].skip = (uint32_t)t->num_nodes;
    for (uint32_t d = shared; d < e->text.len; d++) {
        path[d] = (uint32_t)t->num_nodes;
        t->nodes[t->num_nodes++] = (struct trie_node){
            .first_token = (uint32_t)t->num_tokens,
            .depth = (uint16_t)d,
            .byte = (uint8_t)e->text.data[d],
        };
    }
    t->tokens[t->num_tokens++] = e->id;
}

void token_trie_init(struct token_trie *t, const struct trie_text *texts, int32_t vocab_size) {
    struct entry *entries = xmalloc((size_t)vocab_size * sizeof *entries);
    uint32_t path[TRIE_MAX_DEPTH], depth = 0;
    size_t bytes = 0, n = 0;
    memset(t, 0, sizeof *t);
    for (int32_t id = 0; id < vocab_size; id++)
        if (texts[id].data && texts[id].len > 0 && texts[id].len <= TRIE_MAX_DEPTH) {
            entries[n++] = (struct entry){texts[id], id};
            bytes += texts[id].len;
        }
    qsort(entries, n, sizeof *entries, by_text);
    t->nodes = xmalloc((bytes + 1) * sizeof *t->nodes);
    t->tokens = xmalloc((n + 1) * sizeof *t->tokens);
    for (size_t i = 0; i < n; i++) {
        uint32_t shared = i > 0 ? shared_bytes(&entries[i - 1].text, &entries[i].text) : 0;
        add_text(t, &entries[i], shared, path, depth);
        depth = entries[i].text.len;
    }
    for (uint32_t d = depth; d > 0; d--)
        t->nodes[path[d - 1]].skip = (uint32_t)t->num_nodes;
    t->nodes[t->num_nodes] = (struct trie_node){.first_token = (uint32_t)t->num_tokens};
    t->nodes = xrealloc(t->nodes, ((size_t)t->num_nodes + 1) * sizeof *t->nodes);
    free(entries);
}

void token_trie_deinit(struct token_trie *t) {
    free(t->nodes);
    free(t->tokens);
    memset(t, 0, sizeof *t);
}
