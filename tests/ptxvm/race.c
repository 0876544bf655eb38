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
 * Kernels of one stream are ordered, hence memory of a race lasts for one launch.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/race_clock.h"
#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/vm.h"

enum { SLOTS = 4, PAGE_BYTES = 1024, PAGE_CELLS = PAGE_BYTES / 4, STRIPES = 64, MAX_PENDING = 4 };
enum { IS_WRITE = 1, IS_ATOMIC = 2 };

struct access {
    uint32_t block, epoch, where;
    uint16_t thread;
    uint8_t bytes; /* mask of the 4; 0: no access */
    uint8_t flags;
};

struct cell {
    struct access slot[SLOTS];
};

struct page { /* of global memory */
    uint64_t number;
    struct cell *cells; /* [PAGE_CELLS], owned */
};

struct signal { /* what those who acquire an address learn */
    uint64_t key;
    struct race_clock *clock;
};

/* A part of the global memory, with a lock of its own. The tables are open hashes. */
struct stripe {
    pthread_mutex_t lock;
    struct page *pages;
    struct signal *signals;
    uint32_t num_pages, cap_pages, num_signals, cap_signals;
};

struct vm_race {
    struct stripe stripes[STRIPES];
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
    uint32_t block, num_threads, num_cells;
    struct cell *cells;      /* of shared memory */
    struct thread threads[]; /* [num_threads] */
};

/* ---- tables -------------------------------------------------------------------------------------
 */

static uint64_t hash(uint64_t key) {
    return (key * 0x9e3779b97f4a7c15u) >> 24;
}

static struct page *probe_page(struct page *pages, uint32_t cap, uint64_t number) {
    uint64_t n = hash(number) & (cap - 1);
    while (pages[n].cells && pages[n].number != number)
        n = (n + 1) & (cap - 1);
    return &pages[n];
}

/* The cells of a page of global memory; the stripe is locked. */
static struct cell *page_cells(struct stripe *s, uint64_t number) {
    if (2 * s->num_pages >= s->cap_pages) {
        uint32_t cap = s->cap_pages ? 2 * s->cap_pages : 16;
        struct page *bigger = rt_calloc_array(cap, sizeof *bigger);
        for (uint32_t n = 0; n < s->cap_pages; n++)
            if (s->pages[n].cells)
                *probe_page(bigger, cap, s->pages[n].number) = s->pages[n];
        rt_free(s->pages);
        s->pages = bigger;
        s->cap_pages = cap;
    }
    struct page *p = probe_page(s->pages, s->cap_pages, number);
    if (!p->cells) {
        *p = (struct page){number, rt_calloc_array(PAGE_CELLS, sizeof *p->cells)};
        s->num_pages++;
    }
    return p->cells;
}

static struct signal *probe_signal(struct signal *signals, uint32_t cap, uint64_t key) {
    uint64_t n = hash(key) & (cap - 1);
    while (signals[n].clock && signals[n].key != key)
        n = (n + 1) & (cap - 1);
    return &signals[n];
}

/* The signal of an address, made when there is none; the stripe is locked. */
static struct signal *signal_at(struct stripe *s, uint64_t key) {
    if (2 * s->num_signals >= s->cap_signals) {
        uint32_t cap = s->cap_signals ? 2 * s->cap_signals : 16;
        struct signal *bigger = rt_calloc_array(cap, sizeof *bigger);
        for (uint32_t n = 0; n < s->cap_signals; n++)
            if (s->signals[n].clock)
                *probe_signal(bigger, cap, s->signals[n].key) = s->signals[n];
        rt_free(s->signals);
        s->signals = bigger;
        s->cap_signals = cap;
    }
    struct signal *found = probe_signal(s->signals, s->cap_signals, key);
    found->key = key;
    return found;
}

static struct stripe *stripe_of(struct vm_race *r, uint64_t key) {
    return &r->stripes[hash(key / PAGE_BYTES) >> 20 & (STRIPES - 1)];
}

/* What an address of shared or global memory is called among all of the grid. */
static uint64_t key_of(const struct vm_race_block *rb, bool shared, uint64_t address) {
    return shared ? (uint64_t)1 << 63 | (uint64_t)rb->block << 24 | address : address;
}

static void publish(struct vm_race_block *rb, uint64_t key, struct race_clock *clock) {
    struct stripe *s = stripe_of(rb->race, key);
    pthread_mutex_lock(&s->lock);
    struct signal *to = signal_at(s, key);
    s->num_signals += !to->clock;
    race_clock_join(&to->clock, clock, rb->num_threads);
    pthread_mutex_unlock(&s->lock);
}

static void learn(struct vm_race_block *rb, uint64_t key, struct race_clock **into) {
    struct stripe *s = stripe_of(rb->race, key);
    pthread_mutex_lock(&s->lock);
    struct race_clock *seen = signal_at(s, key)->clock;
    if (seen)
        race_clock_ref(seen);
    pthread_mutex_unlock(&s->lock);
    race_clock_join(into, seen, rb->num_threads);
    race_clock_unref(seen);
}

/* ---- lives of grids and blocks
 * -------------------------------------------------------------------- */

struct vm_race *vm_race_create(struct vm_grid *g) {
    (void)g;
    struct vm_race *r = rt_calloc_array(1, sizeof *r);
    for (int n = 0; n < STRIPES; n++)
        pthread_mutex_init(&r->stripes[n].lock, NULL);
    return r;
}

void vm_race_destroy(struct vm_race *r) {
    for (int n = 0; r && n < STRIPES; n++) {
        struct stripe *s = &r->stripes[n];
        for (uint32_t k = 0; k < s->cap_pages; k++)
            rt_free(s->pages[k].cells);
        for (uint32_t k = 0; k < s->cap_signals; k++)
            race_clock_unref(s->signals[k].clock);
        rt_free(s->pages);
        rt_free(s->signals);
        pthread_mutex_destroy(&s->lock);
    }
    rt_free(r);
}

struct vm_race_block *vm_race_block_create(uint32_t num_warps, uint32_t shared_bytes) {
    uint32_t threads = num_warps * VM_WARP;
    struct vm_race_block *rb = rt_calloc_array(1, sizeof *rb + threads * sizeof rb->threads[0]);
    rb->num_threads = threads;
    rb->num_cells = (shared_bytes + 3) / 4;
    rb->cells = rt_calloc_array(rb->num_cells + 1, sizeof *rb->cells);
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

/* Blocks of an earlier grid have the numbers of this one's, so what they did is forgotten. */
void vm_race_block_attach(struct vm_race_block *rb, struct vm_race *r) {
    rb->race = r;
    memset(rb->cells, 0, rb->num_cells * sizeof *rb->cells);
}

/* Shared memory keeps the accesses of the block before it, whose number tells them apart. */
void vm_race_block_start(struct vm_block *b) {
    struct vm_race_block *rb = b->race;
    forget_threads(rb);
    rb->block = (uint32_t)b->linear;
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
        uint64_t key = key_of(rb, shared, address[l]);
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

static bool is_before(struct vm_race_block *rb, const struct access *a, uint32_t thread) {
    if (a->block == rb->block && a->thread == thread)
        return true;
    const uint32_t *at = race_clock_of(rb->threads[thread].clock, a->block);
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

/* Compares an access with those of a cell and keeps it there. false: other is one it races with. */
static bool visit(struct vm_race_block *rb, struct cell *c, const struct access *now, bool shared,
                  struct access *other) {
    for (int n = 0; n < SLOTS; n++) {
        struct access *s = &c->slot[n];
        if (!s->bytes)
            continue;
        bool stale = shared && s->block != rb->block;
        bool before = stale || is_before(rb, s, now->thread);
        if (!before && conflicts(s, now)) {
            *other = *s;
            return false;
        }
        if (stale || (before && supersedes(now, s)))
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

/* The access to the words of one page or of shared memory. */
static bool visit_words(struct vm_race_block *rb, struct cell *cells, uint64_t address,
                        uint64_t end, struct access *now, bool shared, uint64_t *at,
                        struct access *other) {
    for (; address < end; address = (address | 3) + 1) {
        uint32_t first = address & 3, last = end - (address - first) < 4 ? end & 3 : 4;
        now->bytes = (uint8_t)((1u << last) - (1u << first));
        *at = address;
        if (!visit(rb, &cells[shared ? address / 4 : address % PAGE_BYTES / 4], now, shared, other))
            return false;
    }
    return true;
}

void vm_race_access(struct vm_warp *w, const struct vm_inst *i, int lane, bool shared,
                    uint64_t address, uint32_t bytes, bool write, bool atomic) {
    struct vm_race_block *rb = w->block->race;
    if (!rb || !bytes)
        return;
    uint32_t thread = w->index * VM_WARP + (uint32_t)lane;
    struct access other,
        now = {.block = rb->block,
               .epoch = rb->threads[thread].epoch,
               .where = i->where,
               .thread = (uint16_t)thread,
               .flags = (uint8_t)((write ? IS_WRITE : 0) | (atomic ? IS_ATOMIC : 0))};
    uint64_t end = address + bytes, at = address;
    bool ok = true;
    if (atomic)
        note_atomic(rb, thread, key_of(rb, shared, address), write);
    if (shared)
        ok = visit_words(rb, rb->cells, address, end, &now, true, &at, &other);
    while (!shared && ok && address < end) {
        uint64_t page_end = (address | (PAGE_BYTES - 1)) + 1;
        uint64_t stop = end < page_end ? end : page_end;
        struct stripe *s = stripe_of(rb->race, address);
        pthread_mutex_lock(&s->lock);
        struct cell *cells = page_cells(s, address / PAGE_BYTES);
        ok = visit_words(rb, cells, address, stop, &now, false, &at, &other);
        pthread_mutex_unlock(&s->lock);
        address = stop;
    }
    if (!ok)
        report(w, i, lane, shared, at, &now, &other);
}

void vm_race_accesses(struct vm_warp *w, const struct vm_inst *i, uint32_t m, bool shared,
                      const uint64_t *address, uint32_t bytes, bool write, bool atomic) {
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        vm_race_access(w, i, l, shared, address[l], bytes, write, atomic);
    }
}
