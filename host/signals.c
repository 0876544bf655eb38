#include "host/signals.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "host/log.h"

/* Guards the two below, and that they are not called once they have changed. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void (*reload_fn)(void *ctx);
static void *reload_ctx;

static bool had_terminal; /* from signals_start on */

static bool has_terminal(void) {
    int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void hang_up(void) {
    if (had_terminal && !has_terminal()) {
        kill(getpid(), SIGTERM);
        return;
    }
    pthread_mutex_lock(&lock);
    if (reload_fn)
        reload_fn(reload_ctx);
    else
        log_info("SIGHUP: nothing is being served that could be reloaded");
    pthread_mutex_unlock(&lock);
}

static void *wait_for_signals(void *set) {
    int signum;
    for (;;) {
        if (sigwait(set, &signum) != 0)
            continue;
        if (signum == SIGUSR1)
            log_step_level(1, "SIGUSR1");
        else if (signum == SIGUSR2)
            log_step_level(-1, "SIGUSR2");
        else
            hang_up();
    }
    return NULL;
}

void signals_start(void) {
    static sigset_t set;
    pthread_t thread;
    struct sigaction hup;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGHUP);
    /* Under nohup it is ignored, and the end of the terminal is not ours. */
    sigaction(SIGHUP, NULL, &hup);
    had_terminal = hup.sa_handler != SIG_IGN && has_terminal();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    int rc = pthread_create(&thread, NULL, wait_for_signals, &set);
    if (rc == 0)
        pthread_detach(thread);
    else
        log_warn("SIGHUP, SIGUSR1 and SIGUSR2 are not heard: cannot create a thread: %s",
                 strerror(rc));
}

void signals_on_reload(void (*fn)(void *ctx), void *ctx) {
    pthread_mutex_lock(&lock);
    reload_fn = fn;
    reload_ctx = ctx;
    pthread_mutex_unlock(&lock);
}
