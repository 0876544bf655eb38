/* scripts/cuda_report.sh on logs as ptxas writes them: one line a kernel, faults first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/shim.h"

/* f<1, true> takes 40 and 44 registers and 2 KB; g spills on sm_90. */
static const char LOG[] =
    "ptxas info    : 0 bytes gmem\n"
    "ptxas info    : Compiling entry function '_Z8f_kernelIL4kind1ELb1EEvi' for 'sm_80'\n"
    "ptxas info    : Function properties for _Z8f_kernelIL4kind1ELb1EEvi\n"
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    "ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 416 bytes cmem[0]\n"
    "ptxas info    : Compiling entry function '_Z8f_kernelIL4kind1ELb1EEvi' for 'sm_90'\n"
    "ptxas info    : Function properties for _Z8f_kernelIL4kind1ELb1EEvi\n"
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    "ptxas info    : Used 44 registers, used 1 barriers, 2048 bytes smem, 416 bytes cmem[0]\n";
static const char SPILL[] =
    "ptxas info    : Compiling entry function '_Z8g_kernelPf' for 'sm_90'\n"
    "ptxas info    : Function properties for _Z8g_kernelPf\n"
    "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
    "ptxas info    : Used 255 registers, used 0 barriers, 380 bytes cmem[0]\n";

static void write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    ASSERT_TRUE(f != NULL);
    fputs(text, f);
    fclose(f);
}

struct report {
    char text[4096];
    int status;
};

/* Runs the script on a log and what the machine traced. */
static struct report report_of(const char *log, const char *trace) {
    char folder[] = "/tmp/cuda_report_XXXXXX", path[64], command[256];
    struct report r = {.status = -1};
    if (!mkdtemp(folder)) {
        FAIL("mkdtemp");
        return r;
    }
    snprintf(path, sizeof path, "%s/a.ptxas", folder);
    write_file(path, log);
    snprintf(path, sizeof path, "%s/trace", folder);
    write_file(path, trace);
    snprintf(command, sizeof command,
             "sh scripts/cuda_report.sh -t %s/trace %s/a.ptxas; rc=$?; rm -r %s; exit $rc", folder,
             folder, folder);
    FILE *p = popen(command, "r");
    if (!p) {
        FAIL("popen");
        return r;
    }
    size_t n = fread(r.text, 1, sizeof r.text - 1, p);
    r.text[n] = '\0';
    r.status = WEXITSTATUS(pclose(p));
    return r;
}

TEST(CudaReport, ListsRegistersAndTheLargestLaunch) {
    struct report r =
        report_of(LOG, "ptxvm: device 0 void f_kernel<(kind)1, true>(int) <<<(1,2,3), (64,1,1), "
                       "1024>>> 0.1 ms\n"
                       "ptxvm: device 0 void f_kernel<(kind)1, true>(int) <<<(9,2,3), (64,1,1), "
                       "512>>> 0.1 ms\n");
    EXPECT_INT_EQ(r.status, 0);
    EXPECT_TRUE(strstr(r.text, "sm_80") != NULL && strstr(r.text, "sm_90") != NULL);
    EXPECT_TRUE(strstr(r.text, "f_kernel<1, true>      40     44      0      0    2048    1024"));
    EXPECT_TRUE(strstr(r.text, "kernels 1, architectures 2, faults 0;"));
}

TEST(CudaReport, ASpillIsListedFirstAndFails) {
    char both[sizeof LOG + sizeof SPILL];
    snprintf(both, sizeof both, "%s%s", LOG, SPILL);
    struct report r = report_of(both, "");
    EXPECT_INT_EQ(r.status, 1);
    EXPECT_TRUE(strncmp(r.text, "sm_90   g_kernel: 16 bytes of stack, 12 bytes of spill", 54) == 0);
    EXPECT_TRUE(strstr(r.text, "g_kernel                -    255     16     12       0       -"));
}

/* 2 KB of its own and 162 KB asked for at the launch: more than sm_80 has, less than sm_90. */
TEST(CudaReport, TooMuchSharedMemoryIsAFaultWhereItIsTooMuch) {
    struct report r = report_of(
        LOG,
        "ptxvm: device 0 void f_kernel<(kind)1, true>(int) <<<(1,1,1), (64,1,1), 165888>>> 1 ms\n");
    EXPECT_INT_EQ(r.status, 1);
    EXPECT_TRUE(strstr(r.text, "sm_80   f_kernel<1, true>: 167936 bytes of shared memory, of 163"));
    EXPECT_TRUE(strstr(r.text, "kernels 1, architectures 2, faults 1;"));
}

TEST(CudaReport, WithoutKernelsItSaysWhatIsMissing) {
    EXPECT_INT_EQ(WEXITSTATUS(system("sh scripts/cuda_report.sh 2>&1 | grep -q 'needs nvcc'")), 0);
    EXPECT_INT_EQ(WEXITSTATUS(system("sh scripts/cuda_report.sh 2>/dev/null")), 1);
    EXPECT_INT_EQ(WEXITSTATUS(system(
                      "sh scripts/cuda_report.sh no.ptxas 2>&1 | grep -q 'no.ptxas is missing'")),
                  0);
}
