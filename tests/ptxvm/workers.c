/* Workers, and the pool of threads that help with large grids.
 *
 * The pool lives as long as the process. A thread of it sleeps until a launch has room for another
 * worker; the launch itself never waits for one to come, only for those that came to leave. Workers
 * without a grid are kept in a list and belong to no thread: the thread of a stream, or a caller
 * with synchronous streams, takes one for each launch.
 */
#include <pthread.h>
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/settings.h"
#include "tests/ptxvm/vm.h"

/* A launch that takes helpers; on the stack of its caller. */
struct job {
    struct job *next;
    struct vm_grid *grid;
    void (*work)(struct vm_worker *worker);
    int32_t wanted, present; /* helpers that may still come; that are there */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more_work = PTHREAD_COND_INITIALIZER, helper_left = PTHREAD_COND_INITIALIZER;
static struct vm_worker *idle;
static struct job *jobs;
static int32_t num_threads;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

/* ---- workers --------------------------------------------------------------------------------- */

/* The lock is held. One of the same device has ranges and contexts that fit. */
static struct vm_worker *take_worker(int32_t device) {
    struct vm_worker **best = &idle;
    for (struct vm_worker **at = &idle; *at; at = &(*at)->next)
        if ((*at)->device == device) {
            best = at;
            break;
        }
    struct vm_worker *w = *best;
    if (w)
        *best = w->next;
    else
        w = rt_calloc_aligned(sizeof *w);
    return w;
}

static void run_worker(struct vm_worker *w, struct job *j) {
    const struct vm_launch *l = &j->grid->launch;
    if (w->device != l->device || w->peers != l->peers)
        memset(w->ranges, 0, sizeof w->ranges);
    w->device = l->device;
    w->peers = l->peers;
    w->grid = j->grid;
    w->counters = (struct ptxvm_counters){0};
    w->queue = (struct vm_queue){.stores = w->stores, .clock_reads = w->clock_reads};
    j->work(w);
    w->grid = NULL;
}

static void return_worker(struct vm_worker *w) {
    w->next = idle;
    idle = w;
}

/* ---- the pool -------------------------------------------------------------------------------- */

static struct job *job_with_room(void) {
    struct job *j = jobs;
    while (j && !j->wanted)
        j = j->next;
    return j;
}

static void *helper(void *arg) {
    (void)arg;
    pthread_mutex_lock(&lock);
    for (;;) {
        struct job *j = job_with_room();
        if (!j) {
            pthread_cond_wait(&more_work, &lock);
            continue;
        }
        j->wanted--;
        j->present++;
        struct vm_worker *w = take_worker(j->grid->launch.device);
        pthread_mutex_unlock(&lock);
        run_worker(w, j);
        pthread_mutex_lock(&lock);
        return_worker(w);
        if (!--j->present)
            pthread_cond_broadcast(&helper_left);
    }
    return NULL;
}

/* A child of a fork has none of the threads. */
static void start_again(void) {
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&more_work, NULL);
    pthread_cond_init(&helper_left, NULL);
    idle = NULL;
    jobs = NULL;
    num_threads = 0;
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, start_again);
}

void vm_workers_start(void) {
    int32_t wanted = vm_settings()->threads - 1;
    pthread_once(&fork_once, watch_forks);
    pthread_mutex_lock(&lock);
    pthread_t thread;
    for (; num_threads < wanted && !pthread_create(&thread, NULL, helper, NULL); num_threads++)
        pthread_detach(thread);
    pthread_mutex_unlock(&lock);
}

void vm_workers_run(struct vm_grid *g, int32_t count, void (*work)(struct vm_worker *worker)) {
    struct job j = {.grid = g, .work = work, .wanted = count - 1};
    pthread_mutex_lock(&lock);
    struct vm_worker *w = take_worker(g->launch.device);
    j.next = jobs;
    jobs = &j;
    pthread_mutex_unlock(&lock);
    if (count == 2)
        pthread_cond_signal(&more_work);
    else if (count > 2)
        pthread_cond_broadcast(&more_work);
    run_worker(w, &j);
    pthread_mutex_lock(&lock);
    return_worker(w);
    struct job **at = &jobs;
    while (*at != &j)
        at = &(*at)->next;
    *at = j.next;
    while (j.present)
        pthread_cond_wait(&helper_left, &lock);
    pthread_mutex_unlock(&lock);
}
