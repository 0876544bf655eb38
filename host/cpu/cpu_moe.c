/* cpu_moe: the experts of a rank, or a dense FFN as one expert that every token visits.
 *
 * A pass takes as many experts as their activations have room for (at least one; in decode all) and
 * has two phases, each with one task list over (expert, 32 rows of I) or (64 rows of H):
 *
 *   gate, up   2 tiles of each, silu(gate) * up from the sums, act packed for the next phase
 *   down       all experts of the pass in turn, so that no two threads add to one partial
 *
 * Experts without tokens are not touched; each weight is read once per ROW_CHUNK tokens of an
 * expert.
 */
#include <string.h>

#include "host/cpu/cpu_backend.h"

/* One expert of a pass. */
struct moe_part {
    const struct expert_weights *e;
    int32_t first_pair, count; /* its pairs in permuted order */
    int32_t task0;             /* its first task of the gate, up phase */
    struct packed act;         /* [count, I] */
};

struct moe_job {
    struct backend *b;
    const struct moe_args *a;
    struct packed x, x_pairs; /* all tokens, as needed by the experts' dtypes */
    int32_t num_parts, num_tasks;
    bool zero; /* this pass starts the partial */
};

enum { GATE_TILES = MAX_TILES / 2, GATE_ROWS = GATE_TILES * TILE_ROWS };

size_t cpu_moe_part_bytes(void) {
    return sizeof(struct moe_part);
}

static const struct moe_part *part_of(const struct moe_job *j, int32_t task) {
    const struct moe_part *p = j->b->moe_parts;
    while (p + 1 < j->b->moe_parts + j->num_parts && p[1].task0 <= task)
        p++;
    return p;
}

/* Up to GATE_TILES tiles of w from row r0 on. */
static void add_tiles(struct tile_list *list, const struct weight *w, int32_t r0) {
    int32_t n = cpu_tiles(w, r0, GATE_TILES, list->tiles + list->num);
    cpu_tile_scales(w, r0, n, list->block_scales + list->num);
    list->num += n;
}

/* Tiles of a task that does gate and up at once: half of them each. None: it does not, or there is
 * no such task. */
static struct tile_list gate_up_tiles(const struct moe_job *j, int32_t task) {
    struct tile_list list = {0};
    if (task >= j->num_tasks)
        return list;
    const struct moe_part *p = part_of(j, task);
    const struct weight *gate = &p->e->gate, *up = &p->e->up;
    int32_t r0 = (task - p->task0) * GATE_ROWS;
    if (gate->dtype != up->dtype || !gate->block_scale != !up->block_scale ||
        gate->rows - r0 <= GATE_ROWS - TILE_ROWS)
        return list;
    add_tiles(&list, gate, r0);
    add_tiles(&list, up, r0);
    return list;
}

/* The sums of tiles of w (gate and up may share a call) into columns `column`.. of the scratch. */
static void tile_sums(const struct moe_job *j, const struct scratch *scratch,
                      const struct weight *w, const struct tile_list *tiles,
                      const struct tile_list *next, const int32_t *rows, int32_t row0, int32_t n,
                      int32_t column) {
    const struct packed *x = cpu_uses_pairs(j->b, w) ? &j->x_pairs : &j->x;
    struct dot_args d = {
        .dtype = w->dtype,
        .num_tiles = tiles->num,
        .num_rows = n,
        .rows = rows,
        .sums = scratch->sums + column,
        .lds = TILE_GROUP_ROWS,
        .panel = scratch->panel,
        .finite = true,
    };
    memcpy(d.tiles, tiles->tiles, sizeof d.tiles);
    memcpy(d.block_scales, tiles->block_scales, sizeof d.block_scales);
    for (int32_t c = 0; c < w->cols;)
        c = cpu_dot_unit(j->b, &d, next, x, row0, c);
}

/* Copies columns [r0, r0 + count) of act rows [row0, row0 + n) to their segments. */
static void put_act(const struct backend *b, const struct packed *act, const float *from,
                    int32_t row0, int32_t n, int32_t r0, int32_t count) {
    for (int32_t c = r0; c < r0 + count;) {
        struct segment s = segment_at(act, c);
        int32_t end = s.col0 + s.len < r0 + count ? s.col0 + s.len : r0 + count;
        for (int32_t i = 0; i < n; i++) {
            uint32_t *to = (uint32_t *)(uintptr_t)act->data + s.offset + (row0 + i) * s.ld;
            const float *f = from + i * GATE_ROWS + (c - r0);
            if (act->pairs)
                b->kernels->round_to_pairs(to + (c - s.col0) / 2, f, end - c);
            else
                memcpy(to + (c - s.col0), f, (size_t)(end - c) * sizeof *f);
        }
        c = end;
    }
}

static void gate_up_task(void *arg, int32_t task, int32_t thread) {
    const struct moe_job *j = arg;
    const struct backend *b = j->b;
    const struct scratch *scratch = &b->scratch[thread];
    const struct moe_part *p = part_of(j, task);
    const struct expert_weights *e = p->e;
    int32_t r0 = (task - p->task0) * GATE_ROWS;
    int32_t count = e->gate.rows - r0 < GATE_ROWS ? e->gate.rows - r0 : GATE_ROWS;
    struct tile_list both = gate_up_tiles(j, task), gate = {0}, up = {0}, next = {0};
    if (both.num > 0) {
        next = gate_up_tiles(j, task + pool_num_threads(b->pool));
    } else {
        add_tiles(&gate, &e->gate, r0);
        add_tiles(&up, &e->up, r0);
    }
    for (int32_t row0 = 0; row0 < p->count; row0 += ROW_CHUNK) {
        int32_t n = p->count - row0 < ROW_CHUNK ? p->count - row0 : ROW_CHUNK;
        const int32_t *rows = j->a->routing ? b->pair_tokens + p->first_pair + row0 : NULL;
        int32_t packed_row0 = rows ? 0 : row0;
        struct store_args store = {
            .sums = scratch->sums,
            .num_rows = n,
            .count = count,
            .scale = e->gate.row_scale ? e->gate.row_scale + r0 : NULL,
            .factor = tile_scale(e->gate.dtype),
        };
        if (both.num > 0) {
            tile_sums(j, scratch, &e->gate, &both, &next, rows, packed_row0, n, 0);
        } else {
            tile_sums(j, scratch, &e->gate, &gate, &next, rows, packed_row0, n, 0);
            tile_sums(j, scratch, &e->up, &up, &next, rows, packed_row0, n, GATE_ROWS);
        }
        b->kernels->silu_mul(&store, e->up.row_scale ? e->up.row_scale + r0 : NULL,
                             tile_scale(e->up.dtype), scratch->act, GATE_ROWS);
        put_act(b, &p->act, scratch->act, row0, n, r0, count);
    }
}

/* partial[.., h0 ..] += the down projection of one expert. */
static void down_part(const struct moe_job *j, const struct scratch *scratch,
                      const struct moe_part *p, int32_t h0, int32_t count) {
    const struct backend *b = j->b;
    bool last = p + 1 == b->moe_parts + j->num_parts;
    struct tile_list next;
    const struct weight *w = &p->e->down;
    int32_t H = b->config.hidden_size;
    struct dot_args d = {
        .dtype = w->dtype,
        .sums = scratch->sums,
        .lds = TILE_GROUP_ROWS,
        .panel = scratch->panel,
        .finite = true,
    };
    d.num_tiles = cpu_tiles(w, h0, MAX_TILES, d.tiles);
    d.block_col0 = w->block_col0;
    cpu_tile_scales(w, h0, d.num_tiles, d.block_scales);
    next.num = cpu_tiles(last ? &b->moe_parts->e->down : &p[1].e->down,
                         last ? h0 + TILE_GROUP_ROWS * pool_num_threads(b->pool) : h0, MAX_TILES,
                         next.tiles);
    for (int32_t row0 = 0; row0 < p->count; row0 += ROW_CHUNK) {
        int32_t n = p->count - row0 < ROW_CHUNK ? p->count - row0 : ROW_CHUNK;
        int32_t pair0 = p->first_pair + row0;
        bool routed = j->a->routing != NULL;
        struct store_args store = {
            .sums = scratch->sums,
            .num_rows = n,
            .count = count,
            .scale = w->row_scale ? w->row_scale + h0 : NULL,
            .factor = tile_scale(w->dtype),
        };
        struct partial_rows out = {
            .data = (double *)j->a->partial + (routed ? 0 : (int64_t)row0 * H) + h0,
            .ld = H,
            .rows = routed ? b->pair_tokens + pair0 : NULL,
            .weight = routed ? b->pair_weights + pair0 : NULL,
        };
        d.num_rows = n;
        cpu_add_product(b, scratch, &d, &store, &next, &p->act, row0, &out);
    }
}

static void down_task(void *arg, int32_t task, int32_t thread) {
    const struct moe_job *j = arg;
    int32_t H = j->b->config.hidden_size, h0 = task * TILE_GROUP_ROWS;
    int32_t count = H - h0 < TILE_GROUP_ROWS ? H - h0 : TILE_GROUP_ROWS;
    if (j->zero)
        for (int32_t t = 0; t < j->a->num_tokens; t++)
            memset((double *)j->a->partial + (int64_t)t * H + h0, 0,
                   (size_t)count * sizeof(double));
    for (int32_t i = 0; i < j->num_parts; i++)
        down_part(j, &j->b->scratch[thread], &j->b->moe_parts[i], h0, count);
}

/* Fills the parts of a pass from experts[*next] on; false when none is left. */
static bool next_pass(struct moe_job *j, int32_t *next) {
    const struct moe_args *a = j->a;
    struct backend *b = j->b;
    int32_t rows = 0;
    j->num_parts = 0;
    j->num_tasks = 0;
    for (; *next < a->num_experts; ++*next) {
        const struct expert_weights *e = &a->experts[*next];
        int32_t first = a->routing ? a->routing->expert_offsets[e->expert] : 0;
        int32_t count = a->routing ? a->routing->expert_counts[e->expert] : a->num_tokens;
        if (count == 0 || e->gate.rows == 0)
            continue;
        if (rows > 0 && rows + count > b->act_rows)
            break;
        b->moe_parts[j->num_parts++] = (struct moe_part){
            .e = e,
            .first_pair = first,
            .count = count,
            .task0 = j->num_tasks,
            .act = {.data = b->act + (size_t)rows * b->act_width,
                    .num_rows = count,
                    .cols = e->down.cols,
                    .unit = a->unit,
                    .pairs = cpu_uses_pairs(b, &e->down)},
        };
        j->num_tasks += (e->gate.rows + GATE_ROWS - 1) / GATE_ROWS;
        rows += count;
    }
    return j->num_parts > 0;
}

/* Operations of a pass, to judge whether threads are worth waking. */
static int64_t pass_work(const struct moe_job *j) {
    int64_t work = 0;
    for (int32_t i = 0; i < j->num_parts; i++) {
        const struct moe_part *p = &j->b->moe_parts[i];
        work += (int64_t)p->count * p->e->gate.rows * p->e->gate.cols;
    }
    return work;
}

static void pack_inputs(struct moe_job *j) {
    const struct moe_args *a = j->a;
    int32_t H = j->b->config.hidden_size, unit = H + H % 2;
    bool plain = false, pairs = false;
    for (int32_t i = 0; i < a->num_experts; i++) {
        const struct weight *both[] = {&a->experts[i].gate, &a->experts[i].up};
        for (int k = 0; k < 2; k++)
            *(cpu_uses_pairs(j->b, both[k]) ? &pairs : &plain) = true;
    }
    if (plain)
        j->x = cpu_pack(j->b, a->x, H, a->num_tokens, H, unit, false);
    if (pairs)
        j->x_pairs = cpu_pack(j->b, a->x, H, a->num_tokens, H, unit, true);
}

void cpu_moe(struct backend *b, const struct moe_args *a) {
    struct moe_job job = {.b = b, .a = a, .zero = !a->accumulate};
    int32_t H = b->config.hidden_size, groups = (H + TILE_GROUP_ROWS - 1) / TILE_GROUP_ROWS;
    CHECK(a->unit > 0 && a->unit % 2 == 0, "unit %d: columns are stored in pairs", a->unit);
    if (a->num_tokens == 0)
        return;
    if (a->routing)
        for (int32_t i = 0; i < a->num_tokens * a->num_experts_per_tok; i++) {
            b->pair_tokens[i] = a->routing->permutation[i] / a->num_experts_per_tok;
            b->pair_weights[i] = a->routing->topk_weights[a->routing->permutation[i]];
        }
    pack_inputs(&job);
    for (int32_t next = 0; next_pass(&job, &next); job.zero = false) {
        int64_t work = pass_work(&job);
        cpu_run(b, gate_up_task, &job, job.num_tasks, 2 * work);
        cpu_run(b, down_task, &job, groups, work);
    }
    if (job.zero) /* no expert of this rank has a token */
        memset(a->partial, 0, (size_t)a->num_tokens * (size_t)H * sizeof(double));
}
