/* Device memory: which addresses belong to whom.
 *
 * All allocations, live and recently freed, stand in one array sorted by address, behind a lock
 * that launches take for reading. Freed memory stays mapped, and its range unused, until
 * QUARANTINE_COUNT later ones or QUARANTINE_BYTES, so that a late use of it can be named.
 */
#include "tests/ptxvm/vm.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/ptxvm/settings.h"

enum { ALIGN = 256, GAP = 256, PAGE = 4096, QUARANTINE_COUNT = 64, POISON_BYTES = 4 << 20 };
static const size_t QUARANTINE_BYTES = (size_t)256 << 20;

struct entry {
    struct vm_allocation a;
    void *mapped; /* owned; NULL: the host's memory, only registered */
    size_t mapped_bytes;
    uint64_t freed_at; /* order of the frees */
};

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct entry *entries;
static int32_t num_entries, cap_entries;
static size_t used[VM_MAX_DEVICES], quarantined;
static int32_t num_quarantined;
static uint64_t frees;
static _Atomic uint32_t epoch = 1;
static pthread_mutex_t access_lock = PTHREAD_MUTEX_INITIALIZER;
static int32_t access_depth;

uint32_t vm_memory_epoch(void) {
    return atomic_load_explicit(&epoch, memory_order_relaxed);
}

/* The first entry whose base lies above p. */
static int32_t above(uintptr_t p) {
    int32_t lo = 0, hi = num_entries;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (entries[mid].a.base <= p)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static struct entry *holder(uintptr_t p) {
    int32_t i = above(p) - 1;
    /* Registered host memory may lie around other entries' gaps, never around entries. */
    return i >= 0 && p - entries[i].a.base < entries[i].a.bytes ? &entries[i] : NULL;
}

static void insert(const struct entry *e) {
    int32_t at = above(e->a.base);
    entries = ptx_grow(entries, num_entries, &cap_entries, sizeof *entries);
    memmove(entries + at + 1, entries + at, (size_t)(num_entries - at) * sizeof *entries);
    entries[at] = *e;
    num_entries++;
    atomic_fetch_add(&epoch, 1);
}

static void erase(int32_t at) {
    memmove(entries + at, entries + at + 1, (size_t)(num_entries - at - 1) * sizeof *entries);
    num_entries--;
    atomic_fetch_add(&epoch, 1);
}

static bool is_limited(enum vm_memory_kind kind) {
    return kind == VM_DEVICE;
}

/* ---- poison ---------------------------------------------------------------------------------- */

/* A file of POISON_BYTES 0xff bytes, -1 where that cannot be had. */
static int poison_file(void) {
    static _Atomic int file = -2;
    int fd = atomic_load(&file), none = -2;
    if (fd != -2)
        return fd;
    fd = memfd_create("ptxvm poison", MFD_CLOEXEC);
    void *p = MAP_FAILED;
    if (fd >= 0 && !ftruncate(fd, POISON_BYTES))
        p = mmap(NULL, POISON_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        if (fd >= 0)
            close(fd);
        fd = -1;
    } else {
        memset(p, 0xff, POISON_BYTES);
        munmap(p, POISON_BYTES);
    }
    if (atomic_compare_exchange_strong(&file, &none, fd))
        return fd;
    if (fd >= 0)
        close(fd);
    return none;
}

/* Fills fresh memory with 0xff bytes. Large allocations, such as a KV cache of which a test touches
 * little, map the same pages of a file again and again; a write gives them a page of their own. */
static void poison(uint8_t *p, size_t bytes) {
    while (bytes >= POISON_BYTES) {
        if (poison_file() < 0 || mmap(p, POISON_BYTES, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_FIXED, poison_file(), 0) == MAP_FAILED)
            break;
        p += POISON_BYTES;
        bytes -= POISON_BYTES;
    }
    memset(p, 0xff, bytes);
}

/* ---- allocations ----------------------------------------------------------------------------- */

void *vm_alloc(int32_t device, size_t bytes, enum vm_memory_kind kind, const char *label) {
    vm_workers_start(); /* not at a launch, which may come where threads must not be created */
    size_t mapped = (bytes + ALIGN + GAP + PAGE - 1) & ~(size_t)(PAGE - 1);
    if (device < 0 || device >= VM_MAX_DEVICES || bytes > (size_t)1 << 46)
        return NULL;
    size_t limit = vm_settings()->memory_bytes[device];
    pthread_rwlock_wrlock(&lock);
    bool full = is_limited(kind) && (bytes > limit || used[device] > limit - bytes);
    if (is_limited(kind) && !full)
        used[device] += bytes;
    pthread_rwlock_unlock(&lock);
    if (full)
        return NULL;
    void *p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        pthread_rwlock_wrlock(&lock);
        used[device] -= is_limited(kind) ? bytes : 0;
        pthread_rwlock_unlock(&lock);
        return NULL;
    }
    poison(p, bytes);
    struct entry e = {.a = {(uintptr_t)p, bytes, kind, device, false, label ? label : "memory"},
                      .mapped = p,
                      .mapped_bytes = mapped};
    pthread_mutex_lock(&access_lock);
    pthread_rwlock_wrlock(&lock);
    if (kind == VM_DEVICE && vm_settings()->protect && !access_depth)
        mprotect(p, mapped, PROT_NONE);
    insert(&e);
    pthread_rwlock_unlock(&lock);
    pthread_mutex_unlock(&access_lock);
    return p;
}

static void drop_oldest(void) {
    int32_t oldest = -1;
    for (int32_t i = 0; i < num_entries; i++)
        if (entries[i].a.freed && (oldest < 0 || entries[i].freed_at < entries[oldest].freed_at))
            oldest = i;
    munmap(entries[oldest].mapped, entries[oldest].mapped_bytes);
    quarantined -= entries[oldest].a.bytes;
    num_quarantined--;
    erase(oldest);
}

bool vm_free(void *p) {
    pthread_rwlock_wrlock(&lock);
    struct entry *e = holder((uintptr_t)p);
    bool ok = e && e->a.base == (uintptr_t)p && !e->a.freed && e->mapped;
    if (ok) {
        e->a.freed = true;
        e->freed_at = ++frees;
        if (is_limited(e->a.kind))
            used[e->a.device] -= e->a.bytes;
        quarantined += e->a.bytes;
        num_quarantined++;
        atomic_fetch_add(&epoch, 1);
        while (num_quarantined > QUARANTINE_COUNT || quarantined > QUARANTINE_BYTES)
            drop_oldest();
    }
    pthread_rwlock_unlock(&lock);
    return ok;
}

bool vm_register_host(void *p, size_t bytes) {
    uintptr_t base = (uintptr_t)p;
    struct entry e = {.a = {base, bytes, VM_PINNED, 0, false, "registered host memory"}};
    pthread_rwlock_wrlock(&lock);
    int32_t next = above(base);
    bool ok = p && bytes && !holder(base) &&
              (next == num_entries || entries[next].a.base >= base + bytes);
    if (ok)
        insert(&e);
    pthread_rwlock_unlock(&lock);
    return ok;
}

bool vm_unregister_host(void *p) {
    pthread_rwlock_wrlock(&lock);
    struct entry *e = holder((uintptr_t)p);
    bool ok = e && e->a.base == (uintptr_t)p && !e->mapped;
    if (ok)
        erase((int32_t)(e - entries));
    pthread_rwlock_unlock(&lock);
    return ok;
}

bool vm_find(const void *p, struct vm_allocation *out) {
    pthread_rwlock_rdlock(&lock);
    const struct entry *e = holder((uintptr_t)p);
    if (e)
        *out = e->a;
    pthread_rwlock_unlock(&lock);
    return e != NULL;
}

bool vm_find_near(uintptr_t p, struct vm_allocation *out) {
    pthread_rwlock_rdlock(&lock);
    int32_t i = above(p) - 1;
    if (i >= 0)
        *out = entries[i].a;
    if (i + 1 < num_entries && (i < 0 || entries[i + 1].a.base - p < p - (out->base + out->bytes)))
        *out = entries[i + 1].a;
    bool found = num_entries > 0;
    pthread_rwlock_unlock(&lock);
    return found;
}

/* ---- fills ----------------------------------------------------------------------------------- */

static bool is_own_device_memory(const void *p) {
    pthread_rwlock_rdlock(&lock);
    const struct entry *e = holder((uintptr_t)p);
    bool own = e && e->mapped && e->a.kind == VM_DEVICE;
    pthread_rwlock_unlock(&lock);
    return own;
}

/* Whole pages of zeros are fresh pages, which cost nothing until they are touched. */
static void clear_pages(uint8_t *p, size_t bytes) {
    if (mmap(p, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        memset(p, 0, bytes);
}

void vm_fill(void *p, int value, size_t bytes) {
    uint8_t *at = p;
    if (bytes < POISON_BYTES || (value & 0xff) || !is_own_device_memory(p)) {
        memset(at, value, bytes);
        return;
    }
    size_t head = -(uintptr_t)at & (PAGE - 1), pages = (bytes - head) & ~(size_t)(PAGE - 1);
    memset(at, 0, head);
    clear_pages(at + head, pages);
    memset(at + head + pages, 0, bytes - head - pages);
}

/* ---- out of the host's reach ----------------------------------------------------------------- */

static void set_access(int protection) {
    if (!vm_settings()->protect)
        return;
    pthread_rwlock_rdlock(&lock);
    for (int32_t i = 0; i < num_entries; i++)
        if (entries[i].a.kind == VM_DEVICE)
            mprotect(entries[i].mapped, entries[i].mapped_bytes, protection);
    pthread_rwlock_unlock(&lock);
}

void vm_access_begin(void) {
    pthread_mutex_lock(&access_lock);
    if (!access_depth++)
        set_access(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&access_lock);
}

void vm_access_end(void) {
    pthread_mutex_lock(&access_lock);
    if (!--access_depth)
        set_access(PROT_NONE);
    pthread_mutex_unlock(&access_lock);
}

size_t vm_total_bytes(int32_t device) {
    return vm_settings()->memory_bytes[device];
}

size_t vm_free_bytes(int32_t device) {
    pthread_rwlock_rdlock(&lock);
    size_t b = vm_settings()->memory_bytes[device] - used[device];
    pthread_rwlock_unlock(&lock);
    return b;
}
