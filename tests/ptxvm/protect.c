/* protect: what the host is told when it touches device memory (PTXVM_PROTECT).
 *
 * The memory is out of reach, so the touch is a SIGSEGV. Its handler names the allocation and gives
 * way to the one that was there before, by default the end of the process.
 */
#include "tests/ptxvm/vm.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct sigaction before;

static void on_touch(int signal, siginfo_t *info, void *context) {
    struct vm_allocation a;
    char text[256];
    (void)signal, (void)context;
    sigaction(SIGSEGV, &before, NULL); /* the access is repeated after the return */
    if (!vm_find(info->si_addr, &a) || a.kind != VM_DEVICE)
        return;
    int n =
        snprintf(text, sizeof text,
                 "ptxvm: the host touches device memory at %p: byte %zu of %s (%zu bytes, device "
                 "%d)\n  copy it with cudaMemcpy; a debugger shows the place\n",
                 info->si_addr, (size_t)((uintptr_t)info->si_addr - a.base), a.label, a.bytes,
                 (int)a.device);
    if (n > 0 && write(2, text, (size_t)n) < 0)
        return;
}

void vm_protect_start(void) {
    static atomic_flag started = ATOMIC_FLAG_INIT;
    struct sigaction action = {.sa_sigaction = on_touch, .sa_flags = SA_SIGINFO};
    if (!atomic_flag_test_and_set(&started))
        sigaction(SIGSEGV, &action, &before);
}
