/* moeserve: serves sparse mixture-of-experts language models. */
#include <fcntl.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "host/cmd.h"
#include "host/mem.h"
#include "host/nearest.h"
#include "host/spm.h"

static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", cmd_serve, "serve a model over HTTP and the line protocol (the default)"},
    {"generate", cmd_generate, "answer one prompt and leave"},
    {"plan", cmd_plan, "say whether a model fits, and how it is spread; needs config.json only"},
    {"config", cmd_config, "print or check the options of a command, and where each is from"},
    {"bench", cmd_bench, "measure a server under load"},
    {"help", cmd_help, "print this text"},
    {"version", cmd_version, "print the version"},
};
enum { NUM_COMMANDS = sizeof commands / sizeof *commands };

static int cmd_help(int argc, char **argv) {
    (void)argc, (void)argv;
    printf("usage: moeserve [COMMAND] [OPTION ...]\n\n");
    for (int i = 0; i < NUM_COMMANDS; i++)
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    printf("\nmoeserve COMMAND --help lists the options of a command.\n");
    return 0;
}

static int cmd_version(int argc, char **argv) {
    (void)argc, (void)argv;
    printf("moeserve %s\n", MOESERVE_VERSION);
    return 0;
}

static int unknown_command(const char *name) {
    const char *names[NUM_COMMANDS];
    for (int i = 0; i < NUM_COMMANDS; i++)
        names[i] = commands[i].name;
    const char *near = nearest_name(names, NUM_COMMANDS, name);
    if (near)
        fprintf(stderr, "moeserve: unknown command '%s' (did you mean %s?)\n", name, near);
    else
        fprintf(stderr, "moeserve: unknown command '%s' (see moeserve help)\n", name);
    return 2;
}

/* Without 0, 1 or 2, the next file or client would get its number, and what is logged. */
static void open_standard_files(void) {
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

static void *crypto_malloc(size_t bytes, const char *file, int line) {
    (void)file, (void)line;
    return bytes ? xmalloc(bytes) : NULL;
}

static void *crypto_realloc(void *p, size_t bytes, const char *file, int line) {
    (void)file, (void)line;
    if (bytes)
        return xrealloc(p, bytes);
    free(p);
    return NULL;
}

static void crypto_free(void *p, const char *file, int line) {
    (void)file, (void)line;
    free(p);
}

/* A library that is out of memory would say that a file is malformed, or end with a signal. */
static void share_allocator(void) {
    json_set_alloc_funcs(xmalloc, free);
    uv_replace_allocator(xmalloc, xrealloc, xcalloc, free);
    CRYPTO_set_mem_functions(crypto_malloc, crypto_realloc, crypto_free);
    spm_set_new_handler();
}

int main(int argc, char **argv) {
    share_allocator();
    open_standard_files();
    signal(SIGPIPE, SIG_IGN); /* a reader that left is an error of write, not our end */
    if (argc < 2 || argv[1][0] == '-') {
        if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
            cmd_help(argc, argv);
            printf("\n");
        }
        return cmd_serve(argc, argv);
    }
    for (int i = 0; i < NUM_COMMANDS; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    return unknown_command(argv[1]);
}
