/* tokenizer_bpe: vocabulary and merge tables, and byte pair encoding of one piece.
 *
 * A piece starts as one symbol a byte (byte level) or a character. The pair of neighbours with the
 * lowest rank is merged, the leftmost first among equals, until no pair has a rank. Symbols form a
 * doubly linked list in an array; candidate pairs wait in a binary heap ordered by (rank,
 * position). A candidate whose pair has changed since it was pushed is dropped when it comes up.
 */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "utf8.h"

/* ---- tables ---- */

static uint32_t slots_for(size_t count) {
    uint32_t n = 16;
    while (n < 2 * count)
        n *= 2;
    return n;
}

static uint32_t hash_bytes(const char *s, size_t len) {
    uint64_t h = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    return (uint32_t)(h ^ h >> 32);
}

void vocab_map_init(struct vocab_map *m, size_t count) {
    uint32_t n = slots_for(count);
    memset(m, 0, sizeof *m);
    m->slots = xmalloc(n * sizeof *m->slots);
    m->mask = n - 1;
    for (uint32_t i = 0; i < n; i++)
        m->slots[i].id = -1;
}

void vocab_map_deinit(struct vocab_map *m) {
    free(m->slots);
    buffer_deinit(&m->pool);
    memset(m, 0, sizeof *m);
}

/* The slot that holds s, or the free one where it would go. */
static struct vocab_slot *vocab_slot_of(const struct vocab_map *m, uint32_t hash, const char *s,
                                        size_t len) {
    for (uint32_t i = hash & m->mask;; i = (i + 1) & m->mask) {
        struct vocab_slot *slot = &m->slots[i];
        if (slot->id == -1 || (slot->hash == hash && slot->len == len &&
                               memcmp(m->pool.data + slot->offset, s, len) == 0))
            return slot;
    }
}

void vocab_map_put(struct vocab_map *m, const char *s, size_t len, int32_t id) {
    uint32_t hash = hash_bytes(s, len);
    struct vocab_slot *slot = vocab_slot_of(m, hash, s, len);
    if (slot->id == -1) {
        slot->hash = hash;
        slot->offset = (uint32_t)m->pool.len;
        slot->len = (uint32_t)len;
        buffer_append(&m->pool, s, len);
    }
    slot->id = id;
}

int32_t vocab_map_get(const struct vocab_map *m, const char *s, size_t len) {
    int32_t id = m->slots && len > 0 ? vocab_slot_of(m, hash_bytes(s, len), s, len)->id : -1;
    return id < 0 ? -1 : id;
}

void vocab_map_hide(struct vocab_map *m, const char *s, size_t len) {
    struct vocab_slot *slot = vocab_slot_of(m, hash_bytes(s, len), s, len);
    if (slot->id >= 0)
        slot->id = -2;
}

void merge_map_init(struct merge_map *m, size_t count) {
    uint32_t n = slots_for(count);
    m->slots = xmalloc(n * sizeof *m->slots);
    m->mask = n - 1;
    for (uint32_t i = 0; i < n; i++)
        m->slots[i].left = -1;
}

static struct merge_slot *merge_slot_of(const struct merge_map *m, int32_t left, int32_t right) {
    uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    for (uint32_t i = (uint32_t)(key >> 32) & m->mask;; i = (i + 1) & m->mask) {
        struct merge_slot *slot = &m->slots[i];
        if (slot->left < 0 || (slot->left == left && slot->right == right))
            return slot;
    }
}

void merge_map_put(struct merge_map *m, int32_t left, int32_t right, int32_t rank, int32_t id) {
    struct merge_slot *slot = merge_slot_of(m, left, right);
    slot->left = left;
    slot->right = right;
    slot->rank = rank;
    slot->id = id;
}

const struct merge_slot *merge_map_get(const struct merge_map *m, int32_t left, int32_t right) {
    const struct merge_slot *slot = merge_slot_of(m, left, right);
    return slot->left < 0 ? NULL : slot;
}

void bpe_deinit(struct bpe *b) {
    vocab_map_deinit(&b->vocab);
    free(b->merges.slots);
    memset(b, 0, sizeof *b);
}

/* ---- byte-level alphabet ---- */

/* Bytes that print stand for themselves; the 68 others, in order, are U+0100 onwards. */
static bool byte_prints(int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

int byte_of_char(uint32_t cp) {
    if (cp < 0x100)
        return byte_prints((int)cp) ? (int)cp : -1;
    uint32_t n = cp - 0x100;
    if (n < 33)
        return (int)n; /* 0x00 .. 0x20 */
    if (n < 67)
        return (int)(n - 33) + 127; /* 0x7F .. 0xA0 */
    return n == 67 ? 0xAD : -1;
}

bool bytes_of_chars(const char *s, size_t len, struct buffer *out) {
    size_t start = out->len;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += utf8_next(s + i, len - i, &cp);
        int b = byte_of_char(cp);
        if (b < 0) {
            out->len = start;
            return false;
        }
        buffer_putc(out, (char)b);
    }
    return true;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

int byte_of_fallback(const char *s, size_t len) {
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>')
        return -1;
    int hi = hex_digit(s[3]), lo = hex_digit(s[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

/* ---- encoding ---- */

struct bpe_symbol {
    int32_t id;         /* -1: merged into the symbol on its left */
    int32_t prev, next; /* positions; -1 at the ends */
};

void bpe_scratch_deinit(struct bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
    memset(s, 0, sizeof *s);
}

static void scratch_reserve(struct bpe_scratch *s, size_t symbols) {
    if (s->cap >= symbols)
        return;
    s->cap = symbols < 64 ? 64 : symbols;
    s->symbols = xrealloc(s->symbols, s->cap * sizeof *s->symbols);
    /* Each of n symbols starts at most one candidate, and each of n - 1 merges pushes two. */
    s->heap = xrealloc(s->heap, 3 * s->cap * sizeof *s->heap);
}

/* Fills s->symbols with the ids of the characters of a piece; returns how many. */
static int32_t symbols_of_chars(const struct bpe *b, struct bpe_scratch *s, const char *piece,
                                size_t len) {
    int32_t n = 0;
    bool unk_waits = false; /* one unk, written before the next known character or at the end */
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        size_t bytes = utf8_next(piece + i, len - i, &cp);
        int32_t id = vocab_map_get(&b->vocab, piece + i, bytes);
        bool fallback = id < 0 && b->byte_fallback;
        for (size_t k = 0; fallback && k < bytes; k++)
            fallback = b->byte_ids[(unsigned char)piece[i + k]] >= 0;
        if (fallback) {
            for (size_t k = 0; k < bytes; k++)
                s->symbols[n++].id = b->byte_ids[(unsigned char)piece[i + k]];
        } else if (id >= 0 || b->unk >= 0) {
            if (unk_waits && (id >= 0 || !b->fuse_unk))
                s->symbols[n++].id = b->unk;
            unk_waits = id < 0;
            if (id >= 0)
                s->symbols[n++].id = id;
        }
        i += bytes;
    }
    if (unk_waits)
        s->symbols[n++].id = b->unk;
    return n;
}

static int32_t symbols_of_bytes(const struct bpe *b, struct bpe_scratch *s, const char *piece,
                                size_t len) {
    int32_t n = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t id = b->byte_ids[(unsigned char)piece[i]];
        bool fused = id < 0 && b->fuse_unk && i > 0 && b->byte_ids[(unsigned char)piece[i - 1]] < 0;
        if (id < 0)
            id = fused ? -1 : b->unk;
        if (id >= 0)
            s->symbols[n++].id = id;
    }
    return n;
}

static void heap_sift_down(uint64_t *heap, size_t n, size_t i) {
    uint64_t v = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= v)
            break;
        heap[i] = heap[child];
    }
    heap[i] = v;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t v) {
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > v; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = v;
}

/* Adds the pair at `left` and its neighbour as a candidate if it has a rank. */
static void push_pair(const struct bpe *b, struct bpe_scratch *s, size_t *n, int32_t left) {
    const struct bpe_symbol *l = &s->symbols[left];
    const struct merge_slot *m = merge_map_get(&b->merges, l->id, s->symbols[l->next].id);
    if (m)
        heap_push(s->heap, n, (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)left);
}

static void merge_all(const struct bpe *b, struct bpe_scratch *s, int32_t count) {
    struct bpe_symbol *symbols = s->symbols;
    size_t n = 0;
    for (int32_t i = 0; i < count; i++) {
        symbols[i].prev = i - 1;
        symbols[i].next = i + 1 < count ? i + 1 : -1;
    }
    for (int32_t i = 0; i + 1 < count; i++) {
        const struct merge_slot *m = merge_map_get(&b->merges, symbols[i].id, symbols[i + 1].id);
        if (m)
            s->heap[n++] = (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)i;
    }
    for (size_t i = n / 2; i-- > 0;)
        heap_sift_down(s->heap, n, i);

    while (n > 0) {
        uint64_t top = s->heap[0];
        s->heap[0] = s->heap[--n];
        if (n > 0)
            heap_sift_down(s->heap, n, 0);
        int32_t pos = (int32_t)(top & UINT32_MAX);
        struct bpe_symbol *left = &symbols[pos];
        if (left->id < 0 || left->next < 0)
            continue;
        struct bpe_symbol *right = &symbols[left->next];
        const struct merge_slot *m = merge_map_get(&b->merges, left->id, right->id);
        if (!m || m->rank != (int32_t)(top >> 32))
            continue; /* the pair has changed */
        left->id = m->id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) {
            symbols[left->next].prev = pos;
            push_pair(b, s, &n, pos);
        }
        if (left->prev >= 0)
            push_pair(b, s, &n, left->prev);
    }
}

static void encode_part(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
                        struct token_list *out) {
    if (b->ignore_merges) {
        int32_t id = vocab_map_get(&b->vocab, piece, len);
        if (id >= 0) {
            token_list_push(out, id);
            return;
        }
    }
    scratch_reserve(s, len);
    int32_t count =
        b->byte_level ? symbols_of_bytes(b, s, piece, len) : symbols_of_chars(b, s, piece, len);
    if (count > 1)
        merge_all(b, s, count);
    for (int32_t i = 0; i < count; i++)
        if (s->symbols[i].id >= 0)
            token_list_push(out, s->symbols[i].id);
}

void bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *piece, size_t len,
                struct token_list *out) {
    const size_t max_part = (size_t)1 << 30; /* positions are int32_t */
    while (len > max_part) {
        size_t part = max_part;
        while (!b->byte_level && ((unsigned char)piece[part] & 0xC0) == 0x80)
            part--;
        encode_part(b, s, piece, part, out);
        piece += part;
        len -= part;
    }
    if (len > 0)
        encode_part(b, s, piece, len, out);
}
