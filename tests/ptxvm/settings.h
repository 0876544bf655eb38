/* settings: the switches of the PTX machine, read once from the environment.
 *
 *   PTXVM_DEVICES=8          how many GPUs there are
 *   PTXVM_ARCH=89            which: 80, 86, 89, 90, 120
 *   PTXVM_MEMORY=2G          bytes of each (K, M, G); 2G,1G: of the first, and of all others
 *   PTXVM_THREADS=n          CPU threads of a large grid; default: the CPUs
 *   PTXVM_STEPS=4000000000   instructions after which a warp that never waits counts as endless
 *   PTXVM_SCHEDULE=min       order of warps and of diverged lanes: min, reverse, random:SEED
 *                            (random also lets lanes of a warp run ahead where CUDA allows it)
 *   PTXVM_STREAMS=async      when work of a stream is done: sync (at the call), async (on a thread
 *                            of the stream), lazy (when somebody waits for it: finds a forgotten
 *                            synchronisation)
 *   PTXVM_ASYNC_COPY=late    when cp.async arrives: late (when it is waited for), eager (at once)
 *   PTXVM_RACES=0            1: report races
 *   PTXVM_PROTECT=0          1: a touch of device memory by the host is a SIGSEGV (sync streams)
 *   PTXVM_FP8_BITS=0         mantissa bits that the accumulator of an FP8 mma keeps; 0: all of
 *                            float32. Ada and Hopper keep 13.
 *   PTXVM_P2P=0              1: devices can be given access to each other's memory
 *   PTXVM_BANKS=0            1: count the bank conflicts of shared memory (slower)
 *   PTXVM_SPIN=10            seconds that a grid may spin without progress of any device before it
 *                            is a deadlock, and after which NCCL says whom it waits for
 *   PTXVM_TRACE=0            1: a line for each launch, with its time and what was counted
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/ptxvm/machine.h"

enum vm_schedule { VM_SCHEDULE_MIN, VM_SCHEDULE_REVERSE, VM_SCHEDULE_RANDOM };
enum vm_streams { VM_STREAMS_SYNC, VM_STREAMS_ASYNC, VM_STREAMS_LAZY };

struct vm_settings {
    int32_t num_devices, sm, threads, fp8_bits, spin_seconds;
    size_t memory_bytes[VM_MAX_DEVICES];
    int64_t steps;
    enum vm_schedule schedule;
    uint64_t schedule_seed;
    enum vm_streams streams;
    bool eager_copies, races, protect, peers, banks, trace;
};

/* Parsed at the first call; an unknown value ends the process with a message. */
const struct vm_settings *vm_settings(void);
/* Reads the environment again, for tests that change it. No launch may be running. */
void vm_settings_reread(void);
