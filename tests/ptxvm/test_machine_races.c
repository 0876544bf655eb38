/* Races and copies that are not waited for (fault_fixture.h). In every race, the line with << comes
 * second.
 */
#include "tests/ptxvm/fault_fixture.h"

#define COPY "@%p2 cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
static const struct fault_case copies[] = {
    {.name = "a copy that is waited for",
     .body = COPY "cp.async.wait_group 0;\n@%p2 ld.shared.u32 %r7, [%r4];\n"},
    {.name = "a copy that is not waited for",
     .body = COPY "@%p2 ld.shared.u32 %r7, [%r4]; // <<\ncp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "a wait for the group before",
     .body = COPY "cp.async.wait_group 1;\n@%p2 ld.shared.u32 %r7, [%r4]; // <<\n"
                  "cp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "a buffer in use that is filled again",
     .body = COPY "cp.async.wait_group 0;\n" COPY "@%p2 ld.shared.u32 %r7, [%r4]; // <<\n"
                  "cp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "an end before the copies have come",
     .body = COPY,
     .result = VM_FAULT,
     .words = "cp.async"},
    {.name = "the copy of another thread without a barrier",
     .body = COPY "cp.async.wait_group 0;\nxor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\n"
                  "@%p2 ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte",
     .races = true},
    {.name = "the copy of another thread after a barrier",
     .body = COPY "cp.async.wait_group 0;\nbar.sync 0;\nxor.b32 %r8, %r3, 4;\n"
                  "add.s32 %r7, %r2, %r8;\n@%p2 ld.shared.u32 %r8, [%r7];\n",
     .races = true},
    {.name = "a barrier before the copies have come",
     .body = COPY "bar.sync 0;\nxor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\n"
                  "@%p2 ld.shared.u32 %r8, [%r7]; // <<\ncp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "a store to where a copy goes",
     .body = COPY "@%p2 st.shared.u32 [%r4], %r1; // <<\ncp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "a copy that belongs to no group",
     .body = "@%p2 cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.wait_group 0;\n"
             "@%p2 ld.shared.u32 %r7, [%r4]; // <<\ncp.async.wait_all;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
};

#define FLAG_SET "st.global.u32 [%rd1], %r1;\n"
#define LAST     "setp.eq.u32 %p4, %r6, 0;\n@!%p1 ret;\n@!%p4 bra WAIT;\n"
static const struct fault_case races[] = {
    {.name = "a missing barrier",
     .body = "st.shared.u32 [%r4], %r1; // >>\nxor.b32 %r8, %r3, 128;\nadd.s32 %r7, %r2, %r8;\n"
             "@!%p3 ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of shared sh",
     .races = true},
    {.name = "a barrier",
     .body =
         "st.shared.u32 [%r4], %r1;\nbar.sync 0;\nxor.b32 %r8, %r3, 128;\nadd.s32 %r7, %r2, %r8;\n"
         "ld.shared.u32 %r8, [%r7];\n",
     .races = true},
    {.name = "a missing __syncwarp",
     .body = "st.shared.u32 [%r4], %r1; // >>\nxor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\n"
             "ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads",
     .races = true},
    {.name = "a __syncwarp",
     .body =
         "st.shared.u32 [%r4], %r1;\nbar.warp.sync -1;\nxor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\n"
         "ld.shared.u32 %r8, [%r7];\n",
     .races = true},
    {.name = "a __syncwarp between two warps",
     .body =
         "st.shared.u32 [%r4], %r1; // >>\nbar.warp.sync -1;\nxor.b32 %r8, %r3, 128;\nadd.s32 %r7, %r2, %r8;\n"
         "@!%p3 ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads",
     .races = true},
    {.name = "a shuffle, which orders nothing",
     .body = "st.shared.u32 [%r4], %r1; // >>\nshfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\n"
             "xor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\nld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads",
     .races = true},
    {.name = "a write after a read",
     .body = "@%p1 st.shared.u32 [%r2], %r1;\nbar.sync 0;\nld.shared.u32 %r7, [%r2]; // >>\n"
             "setp.eq.u32 %p4, %r1, 63;\n@%p4 st.shared.u32 [%r2], %r7; // <<\n",
     .result = VM_FAULT,
     .words = "race: writes byte 0 of shared sh",
     .races = true},
    {.name = "bytes side by side",
     .body = "add.s32 %r7, %r2, %r1;\nst.shared.u8 [%r7], %r1;\nld.shared.u8 %r8, [%r7];\n",
     .races = true},
    {.name = "two blocks at one word",
     .body = "st.global.u32 [%rd3], %r6; // << >>\n",
     .result = VM_FAULT,
     .words = "race: writes byte",
     .blocks = 2,
     .races = true},
    {.name = "two blocks that add atomically",
     .body = "red.global.add.u32 [%rd1], 1;\n",
     .blocks = 8,
     .races = true},
    {.name = "a release and an acquire",
     .body = LAST FLAG_SET "st.release.gpu.global.u32 [%rd1+4], 7;\nret;\nWAIT:\n"
                           "ld.acquire.gpu.global.u32 %r7, [%rd1+4];\nsetp.ne.u32 %p5, %r7, 7;\n"
                           "@%p5 bra WAIT;\nld.global.u32 %r8, [%rd1];\n",
     .blocks = 2,
     .races = true},
    {.name = "a relaxed flag",
     .body = LAST "st.global.u32 [%rd1], %r1; // >>\nst.relaxed.gpu.global.u32 [%rd1+4], 7;\nret;\n"
                  "WAIT:\nld.relaxed.gpu.global.u32 %r7, [%rd1+4];\nsetp.ne.u32 %p5, %r7, 7;\n"
                  "@%p5 bra WAIT;\nld.global.u32 %r8, [%rd1]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of memory under test",
     .blocks = 2,
     .races = true},
    {.name = "a flag between fences",
     .body = LAST FLAG_SET "fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%rd1+4], 7;\nret;\n"
                           "WAIT:\nld.relaxed.gpu.global.u32 %r7, [%rd1+4];\n"
                           "setp.ne.u32 %p5, %r7, 7;\n@%p5 bra WAIT;\nfence.acq_rel.gpu;\n"
                           "ld.global.u32 %r8, [%rd1];\n",
     .blocks = 2,
     .races = true},
    /* data[32] counts the blocks, from -1, the fill of new memory; the last one adds up what all
       have written. */
    {.name = "a counter of blocks",
     .body = "mul.wide.u32 %rd5, %r6, 4;\nadd.s64 %rd6, %rd1, %rd5;\n@%p1 bra FIRST;\nbra ALL;\n"
             "FIRST:\nst.global.u32 [%rd6], %r6;\nmembar.gl;\n"
             "atom.global.add.u32 %r7, [%rd1+128], 1;\nst.shared.u32 [%r2], %r7;\n"
             "ALL:\nbar.sync 0;\nld.shared.u32 %r8, [%r2];\nsetp.ne.u32 %p4, %r8, 6;\n"
             "@%p4 ret;\nmembar.gl;\n@%p2 ld.global.u32 %r9, [%rd3];\n",
     .blocks = 8,
     .races = true},
    {.name = "a counter of blocks without a fence",
     .body = "@!%p1 ret;\nmul.wide.u32 %rd5, %r6, 4;\nadd.s64 %rd6, %rd1, %rd5;\n"
             "st.global.u32 [%rd6], %r6; // >>\natom.global.add.u32 %r7, [%rd1+128], 1;\n"
             "setp.ne.u32 %p4, %r7, 6;\n@%p4 ret;\nld.global.v4.u32 {%r8, %r9, %r10, %r11}, "
             "[%rd1]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte",
     .blocks = 8,
     .races = true},
    {.name = "two lanes that write a word by one instruction",
     .body = "shr.u32 %r8, %r1, 1;\nshl.b32 %r8, %r8, 2;\nadd.s32 %r8, %r8, %r2;\n"
             "st.shared.u32 [%r8], %r1; // << >>\n",
     .result = VM_FAULT,
     .words = "race: writes byte 0 of shared sh",
     .races = true},
    {.name = "lanes that write parts of one word",
     .body = "add.s32 %r7, %r2, %r3;\nadd.s32 %r8, %r2, %r1;\nst.shared.u8 [%r8], %r1; // >>\n"
             "and.b32 %r9, %r1, 60;\nadd.s32 %r9, %r9, %r2;\nbar.warp.sync -1;\n"
             "setp.eq.u32 %p4, %r1, 32;\n@%p4 ld.shared.u32 %r10, [%r2]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte",
     .races = true},
    {.name = "global memory between two warps",
     .body = "st.global.u32 [%rd3], %r1; // >>\nxor.b32 %r8, %r1, 32;\nmul.wide.u32 %rd5, %r8, 4;\n"
             "add.s64 %rd5, %rd5, %rd1;\n@!%p3 ld.global.u32 %r9, [%rd5]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of memory under test",
     .who = "thread (32,0,0)",
     .races = true},
    {.name = "global memory between two warps with a barrier",
     .body = "st.global.u32 [%rd3], %r1;\nbar.sync 0;\nxor.b32 %r8, %r1, 32;\n"
             "mul.wide.u32 %rd5, %r8, 4;\nadd.s64 %rd5, %rd5, %rd1;\nld.global.u32 %r9, [%rd5];\n",
     .races = true},
    {.name = "an atomic and a plain read",
     .body = "red.global.add.u32 [%rd1], 1; // >>\n@!%p3 ld.global.u32 %r7, [%rd1]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of memory under test",
     .races = true},
    {.name = "a warp that writes one place",
     .body = "@%p3 st.shared.v2.u32 [%r2], {%r1, %r1}; // << >>\n",
     .result = VM_FAULT,
     .words = "race: writes byte 0 of shared sh",
     .races = true},
    {.name = "ldmatrix without a __syncwarp",
     .body = "st.shared.u32 [%r4], %r1; // >>\nand.b32 %r7, %r1, 7;\nshl.b32 %r7, %r7, 4;\n"
             "add.s32 %r7, %r7, %r2;\nsetp.lt.u32 %p4, %r1, 32;\n@!%p4 bra E;\n"
             "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r7]; // <<\nE:\n",
     .result = VM_FAULT,
     .words = "race: reads byte",
     .races = true},
    {.name = "ldmatrix after a __syncwarp",
     .body = "st.shared.u32 [%r4], %r1;\nbar.warp.sync -1;\nand.b32 %r7, %r1, 7;\n"
             "shl.b32 %r7, %r7, 4;\nadd.s32 %r7, %r7, %r2;\n@!%p3 bra E;\n"
             "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r7];\nE:\n",
     .races = true},
    {.name = "named barriers of different numbers",
     .body =
         "@%p3 st.shared.u32 [%r4], %r1; // >>\nselp.u32 %r7, 1, 2, %p3;\nbar.sync %r7, 32;\n"
         "xor.b32 %r8, %r3, 128;\nadd.s32 %r8, %r8, %r2;\n@!%p3 ld.shared.u32 %r9, [%r8]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of shared sh",
     .races = true},
};

TEST(MachineFaults, CopiesThatAreNotWaitedFor) {
    FAULT_EXPECT(copies);
}

TEST(MachineFaults, RacesAndTheirCorrectTwins) {
    FAULT_EXPECT(races);
}
