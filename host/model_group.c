/* model_group: one model in several processes (group.h). Process 0 sends each batch to the others,
 * which follow it (model_follow); rows of logits come back to process 0.
 *
 * A batch travels as 32-bit words: T, S, max_blocks, R, then tokens, positions, slots [T] each,
 * cu_seqlens [S + 1], seq_lens [S], block_tables [S, max_blocks], logits_rows [R].
 */
#include <stdlib.h>
#include <string.h>

#include "host/clock.h"
#include "host/group.h"
#include "host/mem.h"
#include "host/model_internal.h"

enum { HEADER_WORDS = 4 };
enum { COMMAND_RUN = 1 };

struct model_group {
    struct group *group; /* borrowed */
    int32_t *words;      /* process 0: room for the largest batch */
    size_t max_words;
    /* Process 0, where ranks do not gather logits themselves: those of process p, [R, V of p]. */
    void **logits;       /* [size] */
    size_t *sizes;       /* [size] bytes of this step */
    struct range *vocab; /* [size] rows of lm_head that its ranks hold */
    struct range own;    /* those of this process */
};

static size_t max_words(const struct model_options *o) {
    size_t T = (size_t)o->max_tokens, S = (size_t)o->max_seqs;
    size_t blocks = (size_t)(o->max_model_len + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE;
    return HEADER_WORDS + 3 * T + 2 * S + 1 + S * blocks + (size_t)o->max_logits;
}

/* Which rows of lm_head the ranks of each process hold: neighbours, as ranks and rows ascend. */
static int exchange_vocab(struct model *m, struct model_group *g, struct error *error) {
    int32_t first = ranks_first(m->ranks), last = first + m->num_ranks - 1;
    const struct range a = m->layout.rank[first].vocab, z = m->layout.rank[last].vocab;
    g->own = (struct range){a.first, z.first + z.count - a.first};
    g->vocab = xcalloc((size_t)group_size(g->group), sizeof *g->vocab);
    return group_all_gather(g->group, &g->own, g->vocab, sizeof g->own, error);
}

int model_group_create(struct model *m, struct error *error) {
    struct group *group = ranks_group(m->ranks);
    if (!group)
        return 0;
    struct model_group *g = xcalloc(1, sizeof *g);
    size_t size = (size_t)group_size(group), rows = (size_t)m->options.max_logits;
    m->group = g;
    g->group = group;
    int rc = exchange_vocab(m, g, error);
    if (rc != 0 || group_rank(group) != 0)
        return rc;
    g->max_words = max_words(&m->options);
    g->words = xcalloc(g->max_words, sizeof *g->words);
    g->logits = xcalloc(size, sizeof *g->logits);
    g->sizes = xcalloc(size, sizeof *g->sizes);
    for (size_t p = 1; p < size && !m->ops->gather_logits; p++)
        g->logits[p] = xmalloc(rows * (size_t)g->vocab[p].count * sizeof(float) + 1);
    return 0;
}

void model_group_destroy(struct model *m) {
    struct model_group *g = m->group;
    if (!g)
        return;
    for (int32_t p = 0; g->logits && p < group_size(g->group); p++)
        free(g->logits[p]);
    free(g->logits);
    free(g->sizes);
    free(g->vocab);
    free(g->words);
    free(g);
}

struct range model_group_vocab(const struct model *m) {
    return m->group ? m->group->own : (struct range){0, m->config->vocab_size};
}

int model_group_min(struct model *m, int32_t *value, struct error *error) {
    int32_t all[MAX_RANKS]; /* a process has a rank at least */
    if (!m->group)
        return 0;
    int rc = group_all_gather(m->group->group, value, all, sizeof *value, error);
    for (int32_t p = 0; p < group_size(m->group->group) && rc == 0; p++)
        *value = all[p] < *value ? all[p] : *value;
    return rc;
}

/* ---- logits ---------------------------------------------------------------------------------- */

static void place_columns(struct model *m, int32_t p, int32_t num_rows) {
    const struct model_group *g = m->group;
    size_t width = (size_t)g->vocab[p].count;
    const float *from = g->logits[p];
    for (int32_t r = 0; r < num_rows; r++)
        memcpy(m->logits + (int64_t)r * m->config->vocab_size + g->vocab[p].first,
               from + (size_t)r * width, width * sizeof *from);
}

static int gather_logits(struct model *m, struct rank *r, int32_t num_rows, struct error *error) {
    struct model_group *g = m->group;
    if (ranks_barrier(m->ranks, r->index) != 0 || r->index != 0)
        return 0; /* (The end of an aborted step is told by others.) */
    /* All columns of this process are there. */
    bool root = group_rank(g->group) == 0;
    int32_t size = group_size(g->group);
    for (int32_t p = 0; p < size && root; p++)
        g->sizes[p] = (size_t)num_rows * (size_t)g->vocab[p].count * sizeof(float);
    size_t mine = root ? 0 : (size_t)num_rows * (size_t)g->own.count * sizeof(float);
    if (root)
        g->sizes[0] = 0;
    int rc = group_gather(g->group, m->logits, mine, root ? g->logits : NULL,
                          root ? g->sizes : NULL, error);
    for (int32_t p = 1; p < size && root && rc == 0; p++)
        place_columns(m, p, num_rows);
    return rc;
}

int model_group_gather_logits(struct model *m, struct rank *r, int32_t num_rows,
                              struct error *error) {
    if (!m->group)
        return 0;
    int64_t start_us = clock_us();
    int rc = gather_logits(m, r, num_rows, error);
    ranks_count_comm(m->ranks, r->index, COMM_GATHER_LOGITS, clock_us() - start_us);
    return rc;
}

/* ---- batches --------------------------------------------------------------------------------- */

static int32_t *put(int32_t *to, const int32_t *from, int64_t n) {
    memcpy(to, from, (size_t)n * sizeof *to);
    return to + n;
}

int model_group_send(struct model *m, const struct batch *b, struct error *error) {
    struct model_group *g = m->group;
    if (!g)
        return 0;
    int32_t *w = g->words;
    *w++ = b->num_tokens;
    *w++ = b->num_seqs;
    *w++ = b->max_blocks;
    *w++ = b->num_logits;
    w = put(w, b->tokens, b->num_tokens);
    w = put(w, b->positions, b->num_tokens);
    w = put(w, b->slot_mapping, b->num_tokens);
    w = put(w, b->cu_seqlens, b->num_seqs + 1);
    w = put(w, b->seq_lens, b->num_seqs);
    w = put(w, b->block_tables, (int64_t)b->num_seqs * b->max_blocks);
    w = put(w, b->logits_rows, b->num_logits);
    size_t words = (size_t)(w - g->words);
    CHECK(words <= g->max_words, "%zu words of %zu", words, g->max_words);
    return group_send(g->group, COMMAND_RUN, g->words, words * sizeof *w, error);
}

static const int32_t *take(const int32_t **at, int64_t n) {
    const int32_t *p = *at;
    *at += n;
    return p;
}

/* What process 0 sends is believed as far as the sizes of this process's arrays allow. */
static int read_batch(const struct model *m, const struct buffer *data, struct batch *b,
                      struct error *error) {
    const struct model_options *o = &m->options;
    const int32_t *at = (const int32_t *)(const void *)data->data;
    size_t words = data->len / sizeof *at;
    if (words >= HEADER_WORDS) {
        *b = (struct batch){
            .num_tokens = at[0], .num_seqs = at[1], .max_blocks = at[2], .num_logits = at[3]};
        at += HEADER_WORDS;
    }
    int64_t T = b->num_tokens, S = b->num_seqs, R = b->num_logits, blocks = b->max_blocks;
    if (words < HEADER_WORDS || T < 1 || T > o->max_tokens || S < 1 || S > o->max_seqs || R < 0 ||
        R > o->max_logits || blocks < 0 || blocks > INT32_MAX / KV_BLOCK_SIZE ||
        (int64_t)words != HEADER_WORDS + 3 * T + 2 * S + 1 + S * blocks + R)
        return error_set(error, ERR_INTERNAL, "process 0 sent a batch that is none (%zu bytes)",
                         data->len);
    b->tokens = take(&at, T);
    b->positions = take(&at, T);
    b->slot_mapping = take(&at, T);
    b->cu_seqlens = take(&at, S + 1);
    b->seq_lens = take(&at, S);
    b->block_tables = take(&at, S * blocks);
    b->logits_rows = take(&at, R);
    return 0;
}

int model_follow(struct model *m, struct error *error) {
    struct buffer data = {0};
    struct batch batch = {0};
    uint32_t kind;
    int rc;
    CHECK(m->group && group_rank(m->group->group) > 0, "process 0 follows nobody");
    while ((rc = group_receive(m->group->group, &kind, &data, error)) == 0) {
        if (kind != COMMAND_RUN)
            rc = error_set(error, ERR_INTERNAL, "process 0 sent command %u, which is none", kind);
        if (rc == 0)
            rc = read_batch(m, &data, &batch, error);
        if (rc != 0)
            break;
        m->batch = &batch;
        m->step++;
        if ((rc = ranks_run(m->ranks, model_forward, m, error)) != 0)
            break;
    }
    if (rc == ERR_SHUTTING_DOWN)
        rc = 0;
    m->lost = rc != 0;
    if (rc != 0)
        group_abort(m->group->group, error->text);
    buffer_deinit(&data);
    return rc;
}
