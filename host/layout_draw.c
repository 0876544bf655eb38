/* layout_draw: the layout as a table of at most 100 columns, one row a rank.
 *
 * The cells are written first, then each column gets the width of its widest cell and the bar of
 * memory what the others leave. A column that has nothing to say (KV heads that are not replicated,
 * experts of a dense model) is left out.
 */
#include <stdio.h>
#include <string.h>

#include "host/layout.h"

enum { LINE = 100, MAX_BAR = 40, MIN_BAR = 12, CELL = 32, GAP = 2 };

enum column {
    COL_RANK,
    COL_BAR, /* filled in last */
    COL_BYTES,
    COL_HEADS,
    COL_KV_HEADS,
    COL_EXPERTS,
    COL_COLUMNS,
    COL_SHARED,
    COL_FFN,
    COL_VOCAB,
    NUM_COLUMNS
};

struct table {
    char cell[MAX_RANKS + 1][NUM_COLUMNS][CELL]; /* row 0: headings */
    int width[NUM_COLUMNS];                      /* 0: left out */
};

/* The kinds of memory in a bar, in this order. */
enum { NUM_KINDS = 7 };
static const struct {
    char letter;
    const char *name;
} kinds[NUM_KINDS] = {{'a', "attention"},  {'E', "experts"}, {'s', "shared experts"}, {'F', "FFN"},
                      {'v', "vocabulary"}, {'o', "other"},   {'K', "KV cache"}};

/* bytes[i]: of kinds[i]. */
static void bytes_by_kind(const struct layout *l, int32_t rank, int64_t bytes[NUM_KINDS]) {
    struct layout_bytes b = layout_bytes(l, rank);
    const int64_t all[NUM_KINDS] = {
        b.attention, b.experts, b.shared, b.ffn, b.vocabulary, b.replicated + b.fixed, b.kv};
    memcpy(bytes, all, sizeof all);
}

static bool memory_is_known(const struct layout *l) {
    return l->rank[0].memory > 0;
}

/* Bytes for which the whole bar stands, the same for all ranks: the largest memory or load. */
static int64_t bar_bytes(const struct layout *l) {
    int64_t most = 1;
    for (int32_t r = 0; r < l->world_size; r++) {
        int64_t total = layout_bytes(l, r).total, memory = l->rank[r].memory;
        most = total > most ? total : most;
        most = memory > most ? memory : most;
    }
    return most;
}

/* A letter for each piece of memory whose middle it covers, '.' for what is free. */
static void draw_bar(const struct layout *l, int32_t rank, int width, char *out) {
    int64_t bytes[NUM_KINDS], sum = 0, whole = bar_bytes(l);
    int at = 0, end;
    bytes_by_kind(l, rank, bytes);
    for (int i = 0; i < NUM_KINDS; i++) {
        sum += bytes[i];
        end = (int)((double)sum / (double)whole * width + 0.5);
        while (at < end && at < width)
            out[at++] = kinds[i].letter;
    }
    end = (int)((double)l->rank[rank].memory / (double)whole * width + 0.5);
    while (at < end && at < width)
        out[at++] = '.';
    out[at] = '\0';
}

static void put_range(char *cell, struct range r) {
    if (r.count == 0)
        snprintf(cell, CELL, "-");
    else
        snprintf(cell, CELL, "%d..%d", r.first, r.first + r.count - 1);
}

static void put_heading(struct table *t, enum column column, const char *text) {
    snprintf(t->cell[0][column], CELL, "%s", text);
}

static void write_headings(const struct layout *l, const struct model_config *c, struct table *t) {
    bool replicated = false;
    for (int32_t r = 0; r < l->world_size; r++)
        replicated |= l->rank[r].kv_counted.count != l->rank[r].kv_heads.count;
    put_heading(t, COL_RANK, "rank");
    if (l->sizes.vocab_row > 0) {
        put_heading(t, COL_BAR, "memory");
        put_heading(t, COL_BYTES, memory_is_known(l) ? "GB of" : "GB");
    }
    put_heading(t, COL_HEADS, "heads");
    if (replicated || c->num_key_value_heads != c->num_attention_heads)
        put_heading(t, COL_KV_HEADS, "KV");
    if (c->router.num_experts > 0) {
        put_heading(t, COL_EXPERTS, "experts");
        put_heading(t, COL_COLUMNS, "columns");
    }
    if (l->shared_intermediate_size > 0)
        put_heading(t, COL_SHARED, "shared");
    if (c->intermediate_size > 0)
        put_heading(t, COL_FFN, "FFN");
    put_heading(t, COL_VOCAB, "vocabulary");
}

static void write_row(const struct layout *l, int32_t rank, struct table *t) {
    const struct rank_layout *k = &l->rank[rank];
    char(*cell)[CELL] = t->cell[rank + 1];
    double total = (double)layout_bytes(l, rank).total / 1e9;
    snprintf(cell[COL_RANK], CELL, "%4d", rank);
    snprintf(cell[COL_BYTES], CELL, memory_is_known(l) ? "%.2f %.2f" : "%.2f", total,
             (double)k->memory / 1e9);
    put_range(cell[COL_HEADS], k->q_heads);
    put_range(cell[COL_KV_HEADS], k->kv_heads);
    put_range(cell[COL_EXPERTS], k->experts);
    if (k->num_replicas > 0)
        snprintf(cell[COL_EXPERTS] + strlen(cell[COL_EXPERTS]), CELL - strlen(cell[COL_EXPERTS]),
                 " +%d", k->num_replicas);
    put_range(cell[COL_COLUMNS], k->expert_columns);
    put_range(cell[COL_SHARED], k->shared_columns);
    put_range(cell[COL_FFN], k->ffn_columns);
    put_range(cell[COL_VOCAB], k->vocab);
}

/* Every column as wide as its widest cell; the bar takes what is left of the line. */
static void set_widths(const struct layout *l, struct table *t) {
    int left = LINE - GAP;
    for (int c = 0; c < NUM_COLUMNS; c++) {
        for (int32_t r = 0; r <= l->world_size && t->cell[0][c][0]; r++) {
            int width = (int)strlen(t->cell[r][c]);
            t->width[c] = width > t->width[c] ? width : t->width[c];
        }
        left -= t->width[c] ? t->width[c] + GAP : 0;
    }
    left += t->width[COL_BAR] + GAP; /* its heading was counted, and the last column has no gap */
    if (t->width[COL_BAR])
        t->width[COL_BAR] = left < MIN_BAR ? 0 : left > MAX_BAR ? MAX_BAR : left;
}

static void put_row(const struct layout *l, const struct table *t, int32_t row,
                    struct buffer *out) {
    char bar[MAX_BAR + 1];
    size_t start = out->len;
    for (int c = 0; c < NUM_COLUMNS; c++) {
        const char *text = t->cell[row][c];
        if (t->width[c] == 0)
            continue;
        if (c == COL_BAR && row > 0) {
            draw_bar(l, row - 1, t->width[c], bar);
            text = bar;
        }
        buffer_printf(out, "%*s%-*s", GAP, "", t->width[c], text);
    }
    while (out->len > start && out->data[out->len - 1] == ' ')
        out->len--;
    buffer_putc(out, '\n');
}

static void put_legend(const struct layout *l, const struct table *t, struct buffer *out) {
    int64_t bytes[NUM_KINDS], of_all[NUM_KINDS] = {0};
    for (int32_t r = 0; r < l->world_size; r++) {
        bytes_by_kind(l, r, bytes);
        for (int i = 0; i < NUM_KINDS; i++)
            of_all[i] += bytes[i];
    }
    buffer_puts(out, "  ");
    for (int i = 0; i < NUM_KINDS; i++)
        if (of_all[i] > 0)
            buffer_printf(out, "%c %s, ", kinds[i].letter, kinds[i].name);
    if (memory_is_known(l))
        buffer_puts(out, ". free, ");
    buffer_printf(out, "%.2f GB a letter\n", (double)bar_bytes(l) / 1e9 / t->width[COL_BAR]);
}

void layout_draw(const struct layout *l, const struct model_config *c, struct buffer *out) {
    struct table t = {0};
    write_headings(l, c, &t);
    for (int32_t r = 0; r < l->world_size; r++)
        write_row(l, r, &t);
    set_widths(l, &t);
    for (int32_t row = 0; row <= l->world_size; row++)
        put_row(l, &t, row, out);
    if (t.width[COL_BAR])
        put_legend(l, &t, out);
}
