/* moeserve config: what the options of a command come to, and whether they are right. No model is
 * loaded and no port is opened. */
#include <stdio.h>
#include <string.h>

#include "host/cmd.h"
#include "host/log.h"
#include "host/options.h"
#include "net/keys.h"
#include "net/server_check.h"

static const char USAGE[] =
    "usage: moeserve config [--print | --check] [--for serve|generate|plan] [OPTION ...]\n"
    "\n"
    "  --print  the options as an INI file for --config, each with where it is from; secrets are\n"
    "           left out [the default]\n"
    "  --check  says nothing when all is right, and leaves with status 0; checks addresses, keys,\n"
    "           certificate and that there is a model, too\n"
    "  --for COMMAND\n"
    "           whose options: serve, generate or plan [serve]\n"
    "\n"
    "All others are options of that command (moeserve COMMAND --help), and count as they do there:\n"
    "flags, then variables MOESERVE_<NAME>, then files, then what the model suggests.\n";

struct request {
    unsigned command;
    bool check, help;
};

static unsigned command_named(const char *name) {
    static const struct {
        const char *name;
        unsigned command;
    } commands[] = {{"serve", CMD_SERVE}, {"generate", CMD_GENERATE}, {"plan", CMD_PLAN}};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(name, commands[i].name))
            return commands[i].command;
    return 0;
}

/* Takes this command's own flags out of the arguments; the number that is left. */
static int take_own(struct request *r, int argc, char **argv, struct error *e) {
    int left = 0;
    r->command = CMD_SERVE;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i], *name = NULL;
        if (!strcmp(a, "--check"))
            r->check = true;
        else if (!strcmp(a, "--help") || !strcmp(a, "-h"))
            r->help = true;
        else if (!strncmp(a, "--for=", 6))
            name = a + 6;
        else if (!strcmp(a, "--for"))
            name = i + 1 < argc ? argv[++i] : "";
        else if (strcmp(a, "--print"))
            argv[left++] = argv[i];
        if (name && !(r->command = command_named(name))) {
            error_set(e, ERR_CONFIG, "--for %s: expected serve, generate or plan", name);
            return -1;
        }
    }
    return left;
}

/* The keys; and, for --check, all else that serve would refuse before it loads the model. */
static int check_server(const struct request *r, const struct options *o, struct error *e) {
    struct server_options server = o->server;
    int rc = keys_create(&o->keys, &server.keys, e);
    if (rc == 0 && r->check)
        rc = server_check_options(&server, e);
    if (rc == 0 && r->check)
        rc = server_check_certificate(&server, e);
    keys_destroy(server.keys);
    return rc;
}

static int run(struct request *r, struct options *o, int argc, char **argv, struct error *e) {
    struct buffer text = {0}, taken = {0};
    options_init(o);
    int rc = options_parse(o, r->command, argc, argv, e);
    cmd_set_up_log(o);
    if (rc == 0)
        rc = cmd_choose_model(o, e);
    if (rc == 0 && r->check)
        rc = cmd_check_model(o, e);
    if (rc == 0 && r->command != CMD_PLAN)
        rc = options_read_generation_config(o, o->engine.model, &taken, e);
    if (rc == 0 && r->command == CMD_SERVE)
        rc = check_server(r, o, e);
    if (rc == 0 && !r->check) {
        options_print(o, r->command, &text);
        fwrite(text.data, 1, text.len, stdout);
    }
    buffer_deinit(&text);
    buffer_deinit(&taken);
    return rc;
}

int cmd_config(int argc, char **argv) {
    struct request r = {0};
    struct options o = {0};
    struct error e = {0};
    argc = take_own(&r, argc, argv, &e);
    if (argc > 0 && r.help) {
        printf("%s", USAGE);
        return 0;
    }
    if (argc < 0 || run(&r, &o, argc, argv, &e) != 0)
        log_error("%s", e.text);
    options_deinit(&o);
    return e.code ? 2 : 0;
}
