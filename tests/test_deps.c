/* scripts/deps.sh and the Makefile's look at libraries, with stand-ins for what they call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/shim.h"

/* A program of that name in the scratch folder's bin/. */
static void stand_in(const char *name, const char *script) {
    char path[512];
    snprintf(path, sizeof path, "%s/bin", shim_scratch_dir());
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/bin/%s", shim_scratch_dir(), name);
    FILE *f = fopen(path, "w");
    if (!f) {
        FAIL("%s", path);
        return;
    }
    fprintf(f, "#!/bin/sh\nhere='%s'\n%s", shim_scratch_dir(), script);
    fclose(f);
    chmod(path, 0755);
}

/* Runs a command with these before all others; its exit status and what it says. */
static int run(const char *command, char *text, size_t size) {
    char line[1024];
    snprintf(line, sizeof line, "PATH='%s/bin':\"$PATH\" %s 2>&1", shim_scratch_dir(), command);
    FILE *f = popen(line, "r");
    size_t n = f ? fread(text, 1, size - 1, f) : 0;
    text[n] = '\0';
    return f ? WEXITSTATUS(pclose(f)) : -1;
}

/* A machine on which apt knows nothing yet, and a user for whom sudo hands no variables on. */
TEST(Deps, InstallsClangsSanitizersOnAFreshMachine) {
    char text[8192];
    stand_in("dpkg-query", "exit 1\n");
    stand_in("id", "echo 1000\n");
    stand_in("sudo", "exec env -u DEBIAN_FRONTEND \"$@\"\n");
    stand_in("apt-cache", "[ ! -e $here/updated ] || echo '  Depends: clang-19'\n");
    stand_in("apt-get", "case $1 in\nupdate) : >$here/updated ;;\n"
                        "*) echo \"frontend $DEBIAN_FRONTEND: $*\" ;;\nesac\n");
    EXPECT_INT_EQ(run("sh scripts/deps.sh dev", text, sizeof text), 0);
    const char *install = strstr(text, "frontend noninteractive: install ");
    EXPECT_TRUE(install && strstr(install, " libhttp-parser-dev ") && strstr(install, " clang ") &&
                strstr(install, " libclang-rt-19-dev"));
    EXPECT_INT_EQ(run("sh scripts/deps.sh", text, sizeof text), 0);
    EXPECT_TRUE(strstr(text, "frontend noninteractive: ") && !strstr(text, "clang"));
}

/* http_parser has no file for pkg-config, which would not miss it. */
TEST(Deps, MakeNoticesThatAHeaderIsMissing) {
    char text[8192];
    stand_in("no-http-parser", "case \" $* \" in\n*' http_parser.h '*) exit 1 ;;\nesac\n");
    EXPECT_INT_EQ(run("env -u MAKEFLAGS make -n CUDA=0 CC=no-http-parser", text, sizeof text), 2);
    EXPECT_TRUE(strstr(text, "http_parser): run scripts/deps.sh") != NULL);
}
