/* Broken kernels that the machine has to report, and their correct twins (fault_fixture.h):
 * barriers and collectives that not all come to, accesses outside of what there is, launches that
 * are not possible, and kernels that do not end.
 */
#include "tests/ptxvm/fault_fixture.h"

static const struct fault_case barriers[] = {
    {.name = "barriers on both sides of a branch",
     .body = "@%p3 bra L;\n bar.sync 0;\n bra M;\nL:\n bar.sync 0; \nM:\n",
     .result = VM_FAULT,
     .words = "divergent barrier 0"},
    {.name = "barrier for all", .body = "bar.sync 0;\n bar.sync 0;\n"},
    {.name = "a thread that ends before a barrier",
     .body = "@%p1 ret;\n bar.sync 0;\n",
     .result = VM_FAULT,
     .words = "barrier 0"},
    {.name = "a warp that ends before a barrier",
     .body = "@%p3 ret;\n bar.sync 0; // <<\n",
     .result = VM_FAULT,
     .words = "have ended"},
    {.name = "a barrier that nobody else comes to",
     .body = "@%p3 bar.sync 1, 64;\n@!%p3 bar.sync 2, 64;\n",
     .result = VM_FAULT,
     .words = "deadlock"},
    {.name = "a barrier of 40 threads",
     .body = "bar.sync 1, 40; // <<\n",
     .result = VM_FAULT,
     .words = "multiple of 32"},
};

static const struct fault_case collectives[] = {
    {.name = "a shuffle without half of the warp",
     .body = "@!%p2 bra L;\n shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1; // <<\nL:\n bar.sync 0;\n",
     .result = VM_FAULT,
     .words = "lanes 0x0000ffff wait for lanes 0xffffffff"},
    {.name = "a shuffle of the half that is there",
     .body = "@!%p2 bra L;\n shfl.sync.bfly.b32 %r7, %r1, 1, 31, 65535;\nL:\n bar.sync 0;\n"},
    {.name = "a lane outside of its mask",
     .body = "vote.sync.ballot.b32 %r7, %p1, 65535; // <<\n",
     .result = VM_FAULT,
     .words = "does not name it"},
    {.name = "a shuffle that meets a vote",
     .body = "@%p2 bra L;\n shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;\n bra M;\n"
             "L:\n vote.sync.ballot.b32 %r7, %p1, -1;\nM:\n",
     .result = VM_FAULT,
     .words = "divergent warp operation"},
};

static const struct fault_case accesses[] = {
    {.name = "global in bounds",
     .body = "st.global.u32 [%rd3], %r1;\nld.global.u32 %r7, [%rd3];\n"},
    {.name = "global past the end",
     .body = "st.global.u32 [%rd3+4], %r1; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "byte 256 of memory under test"},
    {.name = "global before the start",
     .body = "ld.global.u32 %r7, [%rd3+-4]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "4 bytes before memory under test"},
    {.name = "global half outside",
     .body = "ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%rd1+256]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "which has 256 bytes"},
    {.name = "null pointer",
     .body = "mov.u64 %rd5, 0;\nld.global.u32 %r7, [%rd5]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "null pointer"},
    {.name = "global misaligned",
     .body = "ld.global.v2.u32 {%r7, %r8}, [%rd1+4]; // <<\n",
     .result = VM_MISALIGNED,
     .words = "not a multiple of 8"},
    {.name = "freed memory",
     .body = "ld.global.u32 %r7, [%rd3]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "freed memory",
     .memory = FREED},
    {.name = "host memory",
     .body = "ld.global.u32 %r7, [%rd3]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "reads 4 bytes",
     .memory = HOST},
    {.name = "registered host memory",
     .body = "ld.global.u32 %r7, [%rd3];\n",
     .memory = REGISTERED},
    {.name = "memory of another device",
     .body = "ld.global.u32 %r7, [%rd3]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "memory of device 1",
     .memory = OTHER_DEVICE},
    {.name = "shared in bounds", .body = "st.shared.u32 [%r4], %r1;\nld.shared.u32 %r7, [%r4];\n"},
    {.name = "shared past the end",
     .body = "st.shared.u32 [%r4+4], %r1; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "past its end"},
    {.name = "shared misaligned",
     .body = "st.shared.u32 [%r4+2], %r1; // <<\n",
     .result = VM_MISALIGNED,
     .words = "not a multiple of 4"},
    {.name = "shared never written",
     .body = "@%p3 st.shared.u32 [%r4], %r1;\nld.shared.u32 %r7, [%r4]; // <<\n",
     .result = VM_FAULT,
     .words = "byte 128 was never written"},
    {.name = "dynamic shared in bounds",
     .body = "mov.u32 %r7, dyn;\nst.shared.u32 [%r7+124], %r1;\n",
     .dynamic_shared = 128},
    {.name = "dynamic shared past the end",
     .body = "mov.u32 %r7, dyn;\nst.shared.u32 [%r7+128], %r1; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "past its end",
     .dynamic_shared = 128},
    {.name = "trap", .body = "trap; // <<\n", .result = VM_FAULT, .words = "traps"},
};

static const struct fault_case launches[] = {
    {.name = "as many threads as __launch_bounds__", .body = "", .directives = ".maxntid 64, 1, 1"},
    {.name = "more threads than __launch_bounds__",
     .body = "",
     .directives = ".maxntid 64, 1, 1",
     .threads = 65,
     .result = VM_BAD_LAUNCH,
     .words = "its __launch_bounds__ allow 64"},
    {.name = "more threads than a block has",
     .body = "",
     .threads = 1025,
     .result = VM_BAD_LAUNCH,
     .words = "blocks of 1025"},
    {.name = "more shared memory than allowed",
     .body = "",
     .dynamic_shared = 50000,
     .result = VM_BAD_LAUNCH,
     .words = "50000 bytes of dynamic shared memory"},
};

TEST(MachineFaults, BarriersThatNotAllThreadsComeTo) {
    FAULT_EXPECT(barriers);
}

TEST(MachineFaults, CollectivesWithoutSomeOfTheirLanes) {
    FAULT_EXPECT(collectives);
}

TEST(MachineFaults, AccessesOutsideOfWhatThereIs) {
    FAULT_EXPECT(accesses);
}

TEST(MachineFaults, LaunchesThatAreNotPossible) {
    FAULT_EXPECT(launches);
}
