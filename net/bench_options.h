/* bench_options: the command line of `moeserve bench`. Pure; names follow `vllm bench serve`. */
#pragma once

#include <stdbool.h>

#include "host/buffer.h"
#include "host/error.h"
#include "net/bench_report.h"

#ifdef __cplusplus
extern "C" {
#endif

struct bench_options {
    struct bench_settings settings;
    const char *json; /* file to write; NULL: none */
    char *api_key;    /* shown to the server; NULL: none was given */
    bool help;
};

/* argv[0] is the command's name; strings in *out point into argv. What stands after "--" goes to
 * settings.server_args. ERR_CONFIG with one line of text when something is wrong. */
int bench_options_parse(struct bench_options *out, int argc, char **argv, struct error *error);

/* The options as text for --help. */
void bench_options_help(struct buffer *out);

#ifdef __cplusplus
}
#endif
