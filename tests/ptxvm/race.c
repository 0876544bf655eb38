/* The race detector: two accesses to the same bytes, one of them a plain write, that nothing
 * orders.
 *
 * What orders, as CUDA has it: a barrier those who come to it, __syncwarp the lanes of its mask, a
 * release and an acquire of the same address the threads before the one and after the other. A
 * fence with the atomic write after it is a release, an atomic read with the fence after it an
 * acquire, also when a barrier stands between the two. Shuffles, votes and mma order nothing, and
 * atomics (also relaxed and volatile accesses) do not race with each other.
 *
 * Each 4 bytes of shared memory, and of the global memory that the grid has touched, remember up to
 * four accesses. Accesses that lie before a newer one of at least the same power give way to it;
 * when there are still too many, threads of different warps are kept rather than of one. So a race
 * can be missed where many threads collide, but what is reported is one.
 *
 * Kernels of one stream are ordered, hence memory of a race lasts for one launch. So the accesses
 * of two devices, or of a device and the host, are not compared with each other; but flags in
 * pinned memory or a peer's order the threads of a grid, also when the way is through another
 * device. A grid that is watched has one worker, which makes its reports repeatable and needs no
 * locks here.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/race_clock.h"
#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/settings.h"
#include "tests/ptxvm/vm.h"

enum { SLOTS = 4, PAGE_BYTES = 1024, PAGE_CELLS = PAGE_BYTES / 4, MAX_PENDING = 4 };
enum { IS_WRITE = 1, IS_ATOMIC = 2 };
enum { MAX_SPARE_PAGES = 4096 };

struct access {
    uint32_t block; /* of shared memory: which use of the context */
    uint32_t epoch, where;
    uint16_t thread;
    uint8_t bytes; /* mask of the 4; 0: no access */
    uint8_t flags;
};

struct cell {
    struct access slot[SLOTS];
};

struct cells {                         /* of a page of global memory */
    struct cells *next;                /* among the spare ones */
    uint64_t touched[PAGE_CELLS / 64]; /* whether a cell is more than what was left in the memory */
    struct cell cell[PAGE_CELLS];
};

struct page {
    uint64_t number;
    struct cells *cells; /* owned */
};

struct signal { /* what those who acquire an address learn */
    uint64_t key;
    struct race_clock *clock;
};

/* Of one grid. The tables are open hashes. */
struct vm_race {
    struct page *pages;
    struct signal *signals;
    uint32_t num_pages, cap_pages, num_signals, cap_signals;
    struct page last; /* that was asked for */
};

struct thread {
    uint32_t epoch;
    struct race_clock *clock;      /* never NULL while the block runs */
    struct race_clock *fenced;     /* what it knew at its last fence; NULL: none */
    struct race_clock *gained;     /* what its atomic reads saw, in force after the next fence */
    uint64_t pending[MAX_PENDING]; /* keys of atomic reads that are not yet in gained */
    int32_t num_pending;
};

struct vm_race_block {
    struct vm_race *race;
    uint32_t block, num_threads;
    uint32_t use;            /* counts the blocks that ran in this context */
    struct cell *cells;      /* of shared memory */
    struct thread threads[]; /* [num_threads] */
};

/* ---- tables ---------------------------------------------------------------------------------- */

static uint64_t hash(uint64_t key) {
    return (key * 0x9e3779b97f4a7c15u) >> 24;
}

/* Cells that no grid uses; each 16 times as large as the memory that it watches. */
static pthread_mutex_t spare_lock = PTHREAD_MUTEX_INITIALIZER;
static struct cells *spare_cells;
static int32_t num_spare;

static struct cells *take_cells(void) {
    pthread_mutex_lock(&spare_lock);
    struct cells *c = spare_cells;
    if (c) {
        spare_cells = c->next;
        num_spare--;
    }
    pthread_mutex_unlock(&spare_lock);
    if (!c)
        return rt_calloc(sizeof *c);
    memset(c->touched, 0, sizeof c->touched);
    return c;
}

static void return_cells(struct cells *c) {
    pthread_mutex_lock(&spare_lock);
    bool keep = num_spare < MAX_SPARE_PAGES;
    if (keep) {
        c->next = spare_cells;
        spare_cells = c;
        num_spare++;
    }
    pthread_mutex_unlock(&spare_lock);
    if (!keep)
        rt_free(c);
}

static struct page *probe_page(struct page *pages, uint32_t cap, uint64_t number) {
    uint64_t n = hash(number) & (cap - 1);
    while (pages[n].cells && pages[n].number != number)
        n = (n + 1) & (cap - 1);
    return &pages[n];
}

static struct cells *find_page(struct vm_race *r, uint64_t number) {
    if (2 * r->num_pages >= r->cap_pages) {
        uint32_t cap = r->cap_pages ? 2 * r->cap_pages : 64;
        struct page *bigger = rt_calloc_array(cap, sizeof *bigger);
        for (uint32_t n = 0; n < r->cap_pages; n++)
            if (r->pages[n].cells)
                *probe_page(bigger, cap, r->pages[n].number) = r->pages[n];
        rt_free(r->pages);
        r->pages = bigger;
        r->cap_pages = cap;
    }
    struct page *p = probe_page(r->pages, r->cap_pages, number);
    if (!p->cells) {
        *p = (struct page){number, take_cells()};
        r->num_pages++;
    }
    r->last = *p;
    return p->cells;
}

/* The cell of a byte of global memory. */
static struct cell *cell_of(struct vm_race *r, uint64_t address) {
    uint64_t number = address / PAGE_BYTES, n = address % PAGE_BYTES / 4;
    struct cells *c =
        r->last.cells && r->last.number == number ? r->last.cells : find_page(r, number);
    uint64_t bit = (uint64_t)1 << n % 64;
    if (!(c->touched[n / 64] & bit)) {
        c->touched[n / 64] |= bit;
        c->cell[n] = (struct cell){0};
    }
    return &c->cell[n];
}

static struct signal *probe_signal(struct signal *signals, uint32_t cap, uint64_t key) {
    uint64_t n = hash(key) & (cap - 1);
    while (signals[n].clock && signals[n].key != key)
        n = (n + 1) & (cap - 1);
    return &signals[n];
}

/* The signal of an address, made when there is none. */
static struct signal *signal_at(struct vm_race *r, uint64_t key) {
    if (2 * r->num_signals >= r->cap_signals) {
        uint32_t cap = r->cap_signals ? 2 * r->cap_signals : 16;
        struct signal *bigger = rt_calloc_array(cap, sizeof *bigger);
        for (uint32_t n = 0; n < r->cap_signals; n++)
            if (r->signals[n].clock)
                *probe_signal(bigger, cap, r->signals[n].key) = r->signals[n];
        rt_free(r->signals);
        r->signals = bigger;
        r->cap_signals = cap;
    }
    struct signal *found = probe_signal(r->signals, r->cap_signals, key);
    found->key = key;
    return found;
}

/* Memory that other devices or the host may write to while the grid runs. */
static bool is_outside(const struct vm_launch *l, uint64_t address) {
    struct vm_allocation a;
    return vm_find((const void *)(uintptr_t)address, &a) &&
           (a.kind == VM_PINNED || a.device != l->device || vm_settings()->peers);
}

/* What an address of shared or global memory is called among all of the grid. A release to one
 * place outside of the grid may come back, through others, as what another place is acquired with:
 * all of them have one name. */
static uint64_t key_of(const struct vm_block *b, bool shared, uint64_t address) {
    if (shared)
        return (uint64_t)1 << 63 | (uint64_t)b->race->block << 24 | address;
    return is_outside(&b->grid->launch, address) ? UINT64_MAX : address;
}

static void publish(struct vm_race_block *rb, uint64_t key, struct race_clock *clock) {
    struct signal *to = signal_at(rb->race, key);
    rb->race->num_signals += !to->clock;
    race_clock_join(&to->clock, clock, rb->num_threads);
}

static void learn(struct vm_race_block *rb, uint64_t key, struct race_clock **into) {
    race_clock_join(into, signal_at(rb->race, key)->clock, rb->num_threads);
}

/* ---- lives of grids and blocks
 * -------------------------------------------------------------------- */

struct vm_race *vm_race_create(void) {
    return rt_calloc(sizeof(struct vm_race));
}

void vm_race_destroy(struct vm_race *r) {
    if (!r)
        return;
    for (uint32_t k = 0; k < r->cap_pages; k++)
        if (r->pages[k].cells)
            return_cells(r->pages[k].cells);
    for (uint32_t k = 0; k < r->cap_signals; k++)
        race_clock_unref(r->signals[k].clock);
    rt_free(r->pages);
    rt_free(r->signals);
    rt_free(r);
}

struct vm_race_block *vm_race_block_create(uint32_t num_warps, uint32_t shared_bytes) {
    uint32_t threads = num_warps * VM_WARP;
    struct vm_race_block *rb = rt_calloc_array(1, sizeof *rb + threads * sizeof rb->threads[0]);
    rb->num_threads = threads;
    rb->cells = rt_calloc_array((shared_bytes + 3) / 4 + 1, sizeof *rb->cells);
    return rb;
}

static void forget_threads(struct vm_race_block *rb) {
    for (uint32_t t = 0; t < rb->num_threads; t++) {
        race_clock_unref(rb->threads[t].clock);
        race_clock_unref(rb->threads[t].fenced);
        race_clock_unref(rb->threads[t].gained);
        rb->threads[t] = (struct thread){.epoch = 1};
    }
}

void vm_race_block_destroy(struct vm_race_block *rb) {
    if (!rb)
        return;
    forget_threads(rb);
    rt_free(rb->cells);
    rt_free(rb);
}

void vm_race_block_attach(struct vm_race_block *rb, struct vm_race *r) {
    rb->race = r;
}

/* Shared memory keeps the accesses of the blocks before it, whose use of it was another. */
void vm_race_block_start(struct vm_block *b) {
    struct vm_race_block *rb = b->race;
    forget_threads(rb);
    rb->block = (uint32_t)b->linear;
    rb->use++;
    struct race_clock *start = race_clock_create(rb->block, rb->num_threads);
    for (uint32_t t = 0; t < rb->num_threads; t++)
        rb->threads[t].clock = race_clock_ref(start);
    race_clock_unref(start);
}

/* ---- order
 * --------------------------------------------------------------------------------------- */

static void fold_pending(struct vm_race_block *rb, struct thread *t) {
    for (int32_t n = 0; n < t->num_pending; n++)
        learn(rb, t->pending[n], &t->gained);
    t->num_pending = 0;
}

static void replace(struct race_clock **slot, struct race_clock *with) {
    if (with)
        race_clock_ref(with);
    race_clock_unref(*slot);
    *slot = with;
}

/* What the threads of a group knew before they met. */
struct meeting {
    struct race_clock *clock, *fenced, *gained;
};

static void meet(struct vm_race_block *rb, struct meeting *sum, uint32_t warp, uint32_t m) {
    for (; m; m &= m - 1) {
        struct thread *t = &rb->threads[warp * VM_WARP + (uint32_t)vm_first(m)];
        fold_pending(rb, t);
        race_clock_join(&sum->clock, t->clock, rb->num_threads);
        race_clock_join(&sum->fenced, t->fenced, rb->num_threads);
        race_clock_join(&sum->gained, t->gained, rb->num_threads);
    }
}

static void part(struct vm_race_block *rb, const struct meeting *sum, uint32_t warp, uint32_t m) {
    uint32_t *at = race_clock_of(sum->clock, rb->block);
    for (uint32_t rest = m; rest; rest &= rest - 1) {
        uint32_t n = warp * VM_WARP + (uint32_t)vm_first(rest);
        struct thread *t = &rb->threads[n];
        at[n] = t->epoch++;
        replace(&t->clock, sum->clock);
        replace(&t->fenced, sum->fenced);
        replace(&t->gained, sum->gained);
    }
}

static void sync_warps(struct vm_race_block *rb, uint32_t first, uint32_t num_warps,
                       const uint32_t *lanes) {
    struct meeting sum = {0};
    for (uint32_t n = 0; n < num_warps; n++)
        meet(rb, &sum, first + n, lanes[n]);
    if (!sum.clock)
        return;
    struct race_clock *own = race_clock_copy(sum.clock, rb->block, rb->num_threads);
    race_clock_unref(sum.clock);
    sum.clock = own;
    for (uint32_t n = 0; n < num_warps; n++)
        part(rb, &sum, first + n, lanes[n]);
    race_clock_unref(sum.clock);
    race_clock_unref(sum.fenced);
    race_clock_unref(sum.gained);
}

void vm_race_warp_sync(struct vm_warp *w, uint32_t m) {
    if (w->block->race)
        sync_warps(w->block->race, w->index, 1, &m);
}

void vm_race_block_sync(struct vm_block *b, const uint32_t *lanes) {
    if (b->race)
        sync_warps(b->race, 0, b->grid->num_warps, lanes);
}

/* What a thread knows, with all that it has done itself, for others to learn. */
static struct race_clock *tell(struct vm_race_block *rb, uint32_t thread) {
    struct thread *t = &rb->threads[thread];
    struct race_clock *c = race_clock_copy(t->clock, rb->block, rb->num_threads);
    race_clock_of(c, rb->block)[thread] = t->epoch++;
    return c;
}

void vm_race_order(struct vm_warp *w, uint32_t m, const uint64_t *address, bool shared,
                   uint32_t order) {
    struct vm_race_block *rb = w->block->race;
    for (; rb && m; m &= m - 1) {
        int l = vm_first(m);
        uint32_t n = w->index * VM_WARP + (uint32_t)l;
        uint64_t key = key_of(w->block, shared, address[l]);
        if (order & VM_ACQUIRE)
            learn(rb, key, &rb->threads[n].clock);
        if (order & VM_RELEASE) {
            struct race_clock *c = tell(rb, n);
            publish(rb, key, c);
            race_clock_unref(c);
        }
    }
}

void vm_race_fence(struct vm_warp *w, uint32_t m) {
    struct vm_race_block *rb = w->block->race;
    for (; rb && m; m &= m - 1) {
        uint32_t n = w->index * VM_WARP + (uint32_t)vm_first(m);
        struct thread *t = &rb->threads[n];
        fold_pending(rb, t);
        race_clock_join(&t->clock, t->gained, rb->num_threads);
        race_clock_unref(t->fenced);
        t->fenced = tell(rb, n);
    }
}

/* An atomic access is half of a release or an acquire; a fence is the other half. */
static void note_atomic(struct vm_race_block *rb, uint32_t thread, uint64_t key, bool write) {
    struct thread *t = &rb->threads[thread];
    if (write && t->fenced)
        publish(rb, key, t->fenced);
    for (int32_t n = 0; n < t->num_pending; n++)
        if (t->pending[n] == key)
            return;
    if (t->num_pending == MAX_PENDING)
        fold_pending(rb, t);
    t->pending[t->num_pending++] = key;
}

/* ---- accesses
 * ------------------------------------------------------------------------------------- */

/* block: of the access. */
static bool is_before(struct vm_race_block *rb, const struct access *a, uint32_t block,
                      uint32_t thread) {
    if (block == rb->block && a->thread == thread)
        return true;
    const uint32_t *at = race_clock_of(rb->threads[thread].clock, block);
    return at && at[a->thread] >= a->epoch;
}

static bool conflicts(const struct access *a, const struct access *b) {
    return (a->bytes & b->bytes) && ((a->flags | b->flags) & IS_WRITE) &&
           !(a->flags & b->flags & IS_ATOMIC);
}

/* Whoever is after the new access is after the old one, and conflicts with it if with the old. */
static bool supersedes(const struct access *now, const struct access *old) {
    bool power = (now->flags & IS_WRITE || !(old->flags & IS_WRITE)) &&
                 (!(now->flags & IS_ATOMIC) || old->flags & IS_ATOMIC);
    return power && !(old->bytes & ~now->bytes);
}

static bool same_warp(const struct access *a, const struct access *b) {
    return a->block == b->block && a->thread / VM_WARP == b->thread / VM_WARP;
}

/* How little is lost with an access: reads before writes, then those of the same warp. */
static int spare(const struct access *old, const struct access *now) {
    return (old->flags & IS_WRITE ? 0 : 2) + same_warp(old, now);
}

static void remember(struct cell *c, const struct access *now) {
    struct access *best = &c->slot[0];
    for (int n = 0; n < SLOTS; n++) {
        struct access *s = &c->slot[n];
        if (!s->bytes) {
            *s = *now;
            return;
        }
        if (spare(s, now) >= spare(best, now))
            best = s;
    }
    if (now->flags & IS_WRITE || !(best->flags & IS_WRITE))
        *best = *now;
}

/* The thread has done the same since it last let others know of what it did. */
static bool is_same(const struct access *a, const struct access *b) {
    return a->block == b->block && a->epoch == b->epoch && a->thread == b->thread &&
           a->bytes == b->bytes && a->flags == b->flags;
}

/* Compares an access with those of a cell and keeps it there. false: other is one it races with. */
static bool visit(struct vm_race_block *rb, struct cell *c, const struct access *now, bool shared,
                  struct access *other) {
    for (int n = 0; n < SLOTS; n++) {
        struct access *s = &c->slot[n];
        if (!s->bytes)
            continue;
        if (is_same(s, now))
            return true; /* whoever came between has met it */
        if (shared && s->block != now->block) {
            s->bytes = 0;
            continue;
        }
        bool wrong = conflicts(s, now), gives_way = supersedes(now, s);
        bool before =
            (wrong || gives_way) && is_before(rb, s, shared ? rb->block : s->block, now->thread);
        if (wrong && !before) {
            *other = *s;
            other->block = shared ? rb->block : s->block;
            return false;
        }
        if (before && gives_way)
            s->bytes = 0;
    }
    remember(c, now);
    return true;
}

static const char *name_of(const struct access *a) {
    static const char *const names[] = {"reads", "writes", "atomically reads", "atomically writes"};
    return names[a->flags & 3];
}

/* "byte 4 of shared sums" or "byte 64 of cudaMalloc (256 bytes)". */
static void describe(const struct vm_grid *g, bool shared, uint64_t address, char *out,
                     size_t bytes) {
    const struct vm_kernel *k = g->kernel;
    struct vm_allocation a;
    if (!shared) {
        if (vm_find((const void *)(uintptr_t)address, &a))
            snprintf(out, bytes, "byte %llu of %s (%zu bytes)",
                     (unsigned long long)(address - a.base), a.label, a.bytes);
        else
            snprintf(out, bytes, "0x%llx", (unsigned long long)address);
        return;
    }
    const struct vm_shared_variable *v = NULL;
    for (int32_t n = 0; n < k->num_shared; n++)
        if (k->shared[n].offset <= address && (!v || k->shared[n].offset > v->offset))
            v = &k->shared[n];
    unsigned long long byte = address - (v ? v->offset : 0);
    struct ptx_text name = v ? vm_variable_name(v->var->name) : (struct ptx_text){"memory", 6};
    snprintf(out, bytes, "byte %llu of shared %.*s", byte, name.len, name.s);
}

static _Noreturn void report(struct vm_warp *w, const struct vm_inst *i, int lane, bool shared,
                             uint64_t address, const struct access *now,
                             const struct access *other) {
    const struct vm_grid *g = w->block->grid;
    const uint32_t *n = g->launch.grid;
    char what[200], place[512];
    uint32_t t[3];
    describe(g, shared, address, what, sizeof what);
    vm_place(g->kernel, other->where, place, sizeof place);
    vm_thread_index(w->block, other->thread, t);
    vm_fault(w, i, lane, VM_FAULT,
             "race: %s %s, which block (%u,%u,%u) thread (%u,%u,%u) %s at %s; nothing orders the "
             "two",
             name_of(now), what, other->block % n[0], other->block / n[0] % n[1],
             other->block / n[0] / n[1], t[0], t[1], t[2], name_of(other), place);
}

void vm_race_access(struct vm_warp *w, const struct vm_inst *i, int lane, bool shared,
                    uint64_t address, uint32_t bytes, bool write, bool atomic) {
    struct vm_race_block *rb = w->block->race;
    if (!rb || !bytes)
        return;
    uint32_t thread = w->index * VM_WARP + (uint32_t)lane;
    struct access other,
        now = {.block = shared ? rb->use : rb->block,
               .epoch = rb->threads[thread].epoch,
               .where = i->where,
               .thread = (uint16_t)thread,
               .flags = (uint8_t)((write ? IS_WRITE : 0) | (atomic ? IS_ATOMIC : 0))};
    if (atomic)
        note_atomic(rb, thread, key_of(w->block, shared, address), write);
    uint64_t end = address + bytes;
    for (uint64_t at = address; at < end; at = (at | 3) + 1) {
        uint32_t first = at & 3, last = end - (at - first) < 4 ? end & 3 : 4;
        now.bytes = (uint8_t)((1u << last) - (1u << first));
        struct cell *c = shared ? &rb->cells[at / 4] : cell_of(rb->race, at);
        if (!visit(rb, c, &now, shared, &other))
            report(w, i, lane, shared, at, &now, &other);
    }
}

void vm_race_accesses(struct vm_warp *w, const struct vm_inst *i, uint32_t m, bool shared,
                      const uint64_t *address, uint32_t bytes, bool write, bool atomic) {
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        vm_race_access(w, i, l, shared, address[l], bytes, write, atomic);
    }
}
