#include "options.h"

#include <errno.h>
#include <ini.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/file.h"
#include "host/json.h"
#include "host/mem.h"
#include "host/nearest.h"

enum option_type {
    OPT_BOOL,
    OPT_INT,
    OPT_BYTES,
    OPT_NUMBER,
    OPT_SEED,
    OPT_STRING,
    OPT_CHOICE,
    OPT_LISTEN
};

enum {
    BOTH = CMD_SERVE | CMD_GENERATE,
    ALL = BOTH | CMD_PLAN,
    MAX_GENERATION_CONFIG_BYTES = 1 << 20
};

struct option {
    const char *name;    /* without dashes; NULL: a heading of --help, in `help` */
    const char *aliases; /* with dashes, space-separated; other systems' names of the same thing */
    enum option_type type;
    unsigned commands;
    size_t offset;       /* in struct options */
    double min, max;     /* OPT_INT, OPT_BYTES, OPT_NUMBER */
    const char *choices; /* OPT_CHOICE: space-separated */
    const char *help;    /* NULL: not listed */
};

#define AT(member) offsetof(struct options, member)
#define HEADING(commands, text)                                                                    \
    { NULL, NULL, OPT_BOOL, commands, 0, 0, 0, NULL, text }

/* clang-format off */
static const struct option table[] = {
    HEADING(ALL, "Model"),
    {"model", "-m --model-path", OPT_STRING, ALL, AT(engine.model), 0, 0, NULL,
     "folder of a checkpoint: config.json, *.safetensors, tokenizer; without it the demo model"},
    {"served-model-name", "-a --alias --model-name", OPT_STRING, BOTH, AT(engine.served_model_name), 0, 0, NULL,
     "name that clients see; without it the folder's name"},
    {"load-format", "", OPT_CHOICE, BOTH, AT(engine.load_format), 0, 0, "auto dummy",
     "dummy: weights from a seeded generator, config.json and tokenizer only"},
    {"max-model-len", "-c --ctx-size --context-length --session-len", OPT_INT, ALL, AT(engine.max_model_len), 0, INT32_MAX, NULL,
     "longest prompt and answer together, in tokens; 0: what the model allows"},
    {"chat-template", "", OPT_STRING, BOTH, AT(engine.chat_template), 0, 0, NULL,
     "name of the template for messages; without it the model's own, if it is known"},

    HEADING(ALL, "Device"),
    {"device", "", OPT_CHOICE, BOTH, AT(engine.device), 0, 0, "cpu cuda ref",
     "cpu; ref: the scalar reference; cuda: a GPU, the same as --gpus 1"},
    {"gpus", "", OPT_STRING, ALL, AT(gpus), 0, 0, NULL,
     "number of GPUs, or a list of their numbers such as 0,2,3 (0,0: two ranks on one); 0: serve on the CPU"},
    {"gpu-memory", "", OPT_STRING, CMD_PLAN, AT(gpu_memory), 0, 0, NULL,
     "memory of each GPU or rank, such as 24G, or one size for each of them: 24G,24G,12G"},
    {"layout", "", OPT_BOOL, CMD_PLAN, AT(layout), 0, 0, NULL,
     "draw what every rank holds"},
    {"ranks", "-tp --tp --tensor-parallel-size", OPT_INT, ALL, AT(engine.ranks), 1, 256, NULL,
     "CPU ranks that the model, or each of its replicas, is spread over"},
    {"replicas", "-dp --dp --data-parallel-size --dp-size", OPT_INT, CMD_SERVE, AT(engine.replicas), 1, MAX_REPLICAS, NULL,
     "copies of the model that share the requests; the GPUs, or the CPU threads, are divided among them"},
    {"enable-expert-parallel", "", OPT_BOOL, ALL, AT(engine.enable_expert_parallel), 0, 0, NULL,
     "whole experts per rank instead of a slice of each"},
    {"expert-parallel-size", "--ep --ep-size", OPT_INT, ALL, AT(engine.expert_parallel_size), 0, 256, NULL,
     "groups of ranks that own whole experts; 0: chosen by the layout"},
    {"comm-timeout", "", OPT_NUMBER, BOTH, AT(engine.comm_timeout_s), 0.1, 3600, NULL,
     "seconds in which a lost or stuck rank is noticed, and the server has recovered or answered everyone and left"},
    {"join-timeout", "", OPT_NUMBER, BOTH, AT(engine.join_timeout_s), 1, 86400, NULL,
     "seconds in which all processes of a group must have started (docs/CLUSTER.md)"},
    {"fault", "", OPT_STRING, BOTH, AT(engine.fault), 0, 0, NULL, NULL},
    {"threads", "-t", OPT_INT, BOTH, AT(engine.threads), 0, 4096, NULL,
     "CPU threads, all ranks and replicas together; 0: all cores"},
    {"cpu-isa", "", OPT_CHOICE, BOTH, AT(engine.cpu_isa), 0, 0, "auto avx2 avx512 avx512bf16",
     "instruction set of the CPU kernels"},
    {"activation-dtype", "", OPT_CHOICE, BOTH, AT(engine.activation_dtype), 0, 0, "bf16 fp8",
     "GPUs: fp8: what is multiplied with FP8 weights is rounded to E4M3 with a scale per token; sm_89 or newer"},
    {"allreduce", "", OPT_CHOICE, BOTH, AT(engine.allreduce), 0, 0, "auto staged nccl",
     "several GPUs: what adds up their shares; staged: built in, through host memory or the GPUs' own; auto: staged, or nccl where it is three times as fast at start"},
    {"allreduce-dtype", "", OPT_CHOICE, BOTH, AT(engine.allreduce_dtype), 0, 0, "auto bf16 f32 fp8",
     "several GPUs: in what these shares travel; auto: bf16; fp8: E4M3 with a scale for 128 columns (staged only)"},
    {"batch-invariant", "", OPT_BOOL, BOTH, AT(engine.batch_invariant), 0, 0, NULL,
     "GPUs: output does not depend on what else runs, somewhat slower; always so on the CPU"},
    {"enforce-eager", "", OPT_BOOL, BOTH, AT(engine.enforce_eager), 0, 0, NULL,
     "GPUs: launch every kernel of every step instead of replaying CUDA graphs"},
    {"embedding", "", OPT_CHOICE, ALL, AT(engine.embedding), 0, 0, "device host",
     "GPUs: where the embedding table is kept; host: in pinned memory, read over PCIe"},

    HEADING(ALL, "Memory and scheduling"),
    {"max-num-seqs", "-np --parallel --max-running-requests --max-batch-size", OPT_INT, ALL, AT(engine.max_num_seqs), 1, 65536, NULL,
     "requests that run at once, of each replica"},
    {"max-num-batched-tokens", "-b --chunked-prefill-size --max-prefill-token-num", OPT_INT, ALL, AT(engine.max_num_batched_tokens), 1, 1 << 20, NULL,
     "tokens of one step of a replica, decodes and prefill chunks together"},
    {"max-queued-requests", "", OPT_INT, BOTH, AT(engine.max_queued_requests), 1, 1 << 20, NULL,
     "requests that wait for a replica; more are refused as overloaded"},
    {"max-queued-tokens", "", OPT_INT, BOTH, AT(engine.max_queued_tokens), 0, INT32_MAX, NULL,
     "prompt tokens of the requests that wait for a replica; more are refused as overloaded; 0: any number"},
    {"request-timeout", "", OPT_NUMBER, BOTH, AT(engine.request_timeout_s), 0, 604800, NULL,
     "seconds in which a request must end after it arrived, else it ends with an error; 0: no limit"},
    {"kv-cache-dtype", "-ctk --cache-type-k", OPT_CHOICE, ALL, AT(engine.kv_cache_dtype), 0, 0, "auto f32 bf16 f16 fp8",
     "type of the KV cache"},
    {"kv-cache-memory-bytes", "", OPT_BYTES, BOTH, AT(engine.kv_cache_memory_bytes), 0, 1LL << 50, NULL,
     "size of each replica's KV cache; 0: for max-num-seqs full contexts, within 40% of free memory (all replicas together) or what gpu-memory-utilization leaves"},
    {"gpu-memory-utilization", "", OPT_NUMBER, ALL, AT(engine.gpu_memory_utilization), 0.05, 1, NULL,
     "share of each GPU's memory for weights, activations and KV cache together"},
    {"num-kv-blocks", "--num-gpu-blocks-override", OPT_INT, BOTH, AT(engine.num_kv_blocks), 0, INT32_MAX, NULL,
     "exactly this many KV blocks of 16 tokens in each replica; 0: from kv-cache-memory-bytes"},
    {"enable-prefix-caching", "", OPT_BOOL, BOTH, AT(engine.enable_prefix_caching), 0, 0, NULL,
     "share KV blocks between prompts that begin alike"},

    HEADING(BOTH, "Sampling (serve: for fields that a request leaves out)"),
    {"generation-config", "", OPT_CHOICE, BOTH, AT(generation_config), 0, 0, "auto none",
     "auto: temperature, top-k, top-p, min-p and repetition-penalty as the model's generation_config.json says"},
    {"max-tokens", "-n --n-predict", OPT_INT, BOTH, AT(generation.max_tokens), 1, INT32_MAX, NULL,
     "tokens to generate"},
    {"min-tokens", "", OPT_INT, BOTH, AT(generation.min_tokens), 0, INT32_MAX, NULL,
     "no end of text before this many"},
    {"temperature", "--temp", OPT_NUMBER, BOTH, AT(generation.sampling.temperature), 0, 100, NULL,
     "0: always the most likely token"},
    {"top-k", "", OPT_INT, BOTH, AT(generation.sampling.top_k), -1, INT32_MAX, NULL,
     "only the k most likely; 0 or -1: all"},
    {"top-p", "", OPT_NUMBER, BOTH, AT(generation.sampling.top_p), 1e-6, 1, NULL,
     "only the most likely with this much probability together"},
    {"min-p", "", OPT_NUMBER, BOTH, AT(generation.sampling.min_p), 0, 1, NULL,
     "none below this share of the best one's probability"},
    {"repetition-penalty", "--repeat-penalty", OPT_NUMBER, BOTH, AT(generation.sampling.repetition_penalty), 0.01, 100, NULL,
     "above 1: what stands in the text already is less likely"},
    {"presence-penalty", "", OPT_NUMBER, BOTH, AT(generation.sampling.presence_penalty), -2, 2, NULL,
     "subtracted from what was generated before"},
    {"frequency-penalty", "", OPT_NUMBER, BOTH, AT(generation.sampling.frequency_penalty), -2, 2, NULL,
     "the same, for each time it was"},
    {"ignore-eos", "", OPT_BOOL, BOTH, AT(generation.ignore_eos), 0, 0, NULL,
     "go on after the end of the text"},
    {"seed", "-s", OPT_SEED, BOTH, AT(engine.seed), 0, 0, NULL,
     "of random choices, where a request gives none"},

    {NULL, NULL, OPT_BOOL, CMD_SERVE, 0, 0, 0, NULL, "Server"},
    {"listen", "", OPT_LISTEN, CMD_SERVE, AT(server.listen), 0, 0, NULL,
     "HOST:PORT of the line protocol; port 0: any free one"},
    {"max-connections", "", OPT_INT, CMD_SERVE, AT(server.max_connections), 1, 1 << 20, NULL,
     "clients at once"},
    {"max-requests-per-connection", "", OPT_INT, CMD_SERVE, AT(server.max_requests_per_connection), 1, 1 << 20, NULL,
     "requests in flight of one client"},
    {"max-line-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_line_bytes), 1024, 1 << 30, NULL,
     "longest request line"},
    {"max-unsent-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_unsent_bytes), 4096, 1LL << 40, NULL,
     "answers that a client may leave unread before it is cut off"},
    {"max-buffered-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_buffered_bytes), 1 << 20, 1LL << 50, NULL,
     "unfinished lines and unread answers of all clients together"},
    {"line-timeout", "", OPT_INT, CMD_SERVE, AT(server.line_timeout_s), 0, 86400, NULL,
     "seconds in which a line that has begun must end; 0: no limit"},
    {"drain-timeout", "", OPT_INT, CMD_SERVE, AT(server.drain_timeout_s), 0, 86400, NULL,
     "seconds that running requests get when the server is told to stop"},

    {NULL, NULL, OPT_BOOL, CMD_GENERATE, 0, 0, 0, NULL, "Prompt"},
    {"prompt", "-p", OPT_STRING, CMD_GENERATE, AT(prompt), 0, 0, NULL,
     "text to go on from; without it standard input is read to its end"},
    {"chat", "", OPT_BOOL, CMD_GENERATE, AT(chat), 0, 0, NULL,
     "the prompt is a user's message, put into the model's chat template"},

    HEADING(ALL, "General"),
    {"config", "", OPT_STRING, ALL, AT(config), 0, 0, NULL,
     "INI file with options as `name = value` lines; flags win"},
    {"verbose", "-v", OPT_BOOL, ALL, AT(verbose), 0, 0, NULL, "log more"},
    {"quiet", "-q", OPT_BOOL, ALL, AT(quiet), 0, 0, NULL, "log errors and warnings only"},
    {"help", "-h", OPT_BOOL, ALL, AT(help), 0, 0, NULL, "print this text"},
    {"version", "-V", OPT_BOOL, ALL, AT(version), 0, 0, NULL, "print the version"},
};
/* clang-format on */
enum { NUM_OPTIONS = sizeof table / sizeof *table };
_Static_assert((int)NUM_OPTIONS <= (int)MAX_OPTIONS, "options.given has a place for each");

void options_init(struct options *o) {
    memset(o, 0, sizeof *o);
    engine_options_default(&o->engine);
    server_options_default(&o->server);
    request_params_default(&o->generation);
    o->generation_config = "auto";
}

void options_deinit(struct options *o) {
    for (int32_t i = 0; i < o->num_strings; i++)
        free(o->strings[i]);
    free(o->strings);
    memset(o, 0, sizeof *o);
}

/* ---- looking up ---- */

/* Is `word` one of the space-separated words of list? */
static bool in_list(const char *list, const char *word) {
    size_t len = strlen(word);
    for (const char *p = list; p && *p;) {
        size_t n = strcspn(p, " ");
        if (n == len && !memcmp(p, word, n))
            return true;
        p += n;
        p += *p == ' ';
    }
    return false;
}

/* max_model_len is max-model-len too. */
static bool same_name(const char *a, const char *b) {
    while (*a && (*a == *b || (*a == '-' && *b == '_'))) {
        a++;
        b++;
    }
    return *a == *b;
}

/* By name, or by alias: `name` has no dashes, `dashed` is as the user wrote it ("-m", "--tp"). */
static const struct option *find(unsigned command, const char *name, const char *dashed) {
    for (int i = 0; i < NUM_OPTIONS; i++) {
        const struct option *opt = &table[i];
        if (!opt->name || !(opt->commands & command))
            continue;
        if ((name && same_name(opt->name, name)) || in_list(opt->aliases, dashed))
            return opt;
    }
    return NULL;
}

static int unknown(unsigned command, const char *name, const char *shown, struct error *error) {
    const char *names[NUM_OPTIONS];
    size_t count = 0;
    for (int i = 0; i < NUM_OPTIONS; i++)
        if (table[i].name && (table[i].commands & command))
            names[count++] = table[i].name;
    const char *near = nearest_name(names, count, name);
    if (near)
        return error_set(error, ERR_CONFIG, "unknown option %s (did you mean --%s?)", shown, near);
    return error_set(error, ERR_CONFIG, "unknown option %s (see --help)", shown);
}

/* ---- values ---- */

void options_keep(struct options *o, char *string) {
    o->strings = xrealloc(o->strings, (size_t)(o->num_strings + 1) * sizeof *o->strings);
    o->strings[o->num_strings++] = string;
}

static const char *keep_copy(struct options *o, const char *s) {
    char *copy = xstrdup(s);
    options_keep(o, copy);
    return copy;
}

static bool parse_bool(const char *s, bool *out) {
    bool yes = in_list("true yes on 1", s), no = in_list("false no off 0", s);
    *out = yes;
    return yes || no;
}

/* "4096", "512K", "4MiB", "1.5g": powers of 1,024. */
static bool parse_bytes(const char *s, double *out) {
    static const char units[] = "kmgt";
    char *end;
    double v = strtod(s, &end);
    if (end == s || !isfinite(v))
        return false;
    if (*end) {
        const char *unit = strchr(units, *end | 0x20);
        if (!unit)
            return false;
        v *= (double)(1LL << (10 * (unit - units + 1)));
        end++;
        if (*end == 'i')
            end++;
        if (*end == 'B' || *end == 'b')
            end++;
    }
    *out = floor(v);
    return *end == '\0';
}

static int bad_value(const struct option *opt, const char *value, struct error *error) {
    switch (opt->type) {
    case OPT_BOOL:
        return error_set(error, ERR_CONFIG, "--%s %s: expected true or false", opt->name, value);
    case OPT_INT:
        return error_set(error, ERR_CONFIG, "--%s %s: expected an integer from %.0f to %.0f",
                         opt->name, value, opt->min, opt->max);
    case OPT_BYTES:
        return error_set(error, ERR_CONFIG,
                         "--%s %s: expected a size from %.0f to %.0f bytes, such as 512M",
                         opt->name, value, opt->min, opt->max);
    case OPT_NUMBER:
        return error_set(error, ERR_CONFIG, "--%s %s: expected a number from %g to %g", opt->name,
                         value, opt->min, opt->max);
    case OPT_SEED:
        return error_set(error, ERR_CONFIG, "--%s %s: expected an integer from 0 to 2^64 - 1",
                         opt->name, value);
    case OPT_CHOICE:
        return error_set(error, ERR_CONFIG, "--%s %s: expected one of: %s", opt->name, value,
                         opt->choices);
    default:
        return error_set(error, ERR_CONFIG, "--%s: expected a value", opt->name);
    }
}

static bool set_int(void *at, const struct option *opt, const char *value) {
    char *end;
    errno = 0;
    long long v = strtoll(value, &end, 10);
    if (end == value || *end || errno || (double)v < opt->min || (double)v > opt->max)
        return false;
    *(int32_t *)at = (int32_t)v;
    return true;
}

static bool set_bytes(void *at, const struct option *opt, const char *value) {
    double v;
    if (!parse_bytes(value, &v) || v < opt->min || v > opt->max)
        return false;
    *(int64_t *)at = (int64_t)v;
    return true;
}

static bool set_number(void *at, const struct option *opt, const char *value) {
    char *end;
    double v = strtod(value, &end);
    if (end == value || *end || !(v >= opt->min && v <= opt->max))
        return false;
    *(float *)at = (float)v;
    return true;
}

static bool set_seed(struct options *o, void *at, const char *value) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || errno)
        return false;
    *(uint64_t *)at = v;
    o->seed_given = true;
    return true;
}

static int set_value(struct options *o, const struct option *opt, const char *value,
                     struct error *error) {
    void *at = (char *)o + opt->offset;
    char host[256], port[6];
    struct error why = {0};
    bool ok = false;
    switch (opt->type) {
    case OPT_BOOL:
        ok = parse_bool(value, at);
        break;
    case OPT_INT:
        ok = set_int(at, opt, value);
        break;
    case OPT_BYTES:
        ok = set_bytes(at, opt, value);
        break;
    case OPT_NUMBER:
        ok = set_number(at, opt, value);
        break;
    case OPT_SEED:
        ok = set_seed(o, at, value);
        break;
    case OPT_LISTEN:
        if (server_parse_address(value, host, port, &why) != 0)
            return error_set(error, ERR_CONFIG, "--%s: %s", opt->name, why.text);
        *(const char **)at = keep_copy(o, value);
        return 0;
    case OPT_CHOICE:
    case OPT_STRING:
        ok = opt->type == OPT_STRING || in_list(opt->choices, value);
        if (ok)
            *(const char **)at = keep_copy(o, value);
        break;
    }
    if (!ok)
        return bad_value(opt, value, error);
    o->given[opt - table] = true;
    return 0;
}

/* ---- files ---- */

struct file_reader {
    struct options *o;
    unsigned command;
    struct error *error;
    bool failed;
    FILE *file;
    bool too_long; /* the line read last did not fit in inih's buffer */
};

/* inih's fgets: without leading blanks, because inih would take an indented `name = value` as more
 * of the value before it, and ending at a line that inih would cut in two. */
static char *next_ini_line(char *line, int size, void *stream) {
    struct file_reader *r = stream;
    if (r->too_long || !fgets(line, size, r->file))
        return NULL;
    size_t len = strlen(line), blanks = strspn(line, " \t");
    r->too_long = len + 1 == (size_t)size && line[len - 1] != '\n';
    memmove(line, line + blanks, len - blanks + 1);
    return line;
}

/* By name or alias, without dashes. */
static const struct option *find_in_file(const char *name) {
    static const char *const dashes[] = {"-", "--"};
    const struct option *opt = find(ALL, name, "");
    for (int i = 0; !opt && i < 2; i++) {
        char dashed[64];
        snprintf(dashed, sizeof dashed, "%s%s", dashes[i], name);
        opt = find(ALL, NULL, dashed);
    }
    return opt;
}

/* inih's handler: 1 to go on, 0 for an error, which we have then written ourselves. */
static int on_ini_key(void *user, const char *section, const char *name, const char *value) {
    struct file_reader *r = user;
    (void)section;
    if (r->failed)
        return 0;
    const struct option *opt = find_in_file(name);
    if (opt &&
        (opt->offset == AT(config) || opt->offset == AT(help) || opt->offset == AT(version))) {
        r->failed = true;
        error_set(r->error, ERR_CONFIG, "%s: not allowed in a file", name);
        return 0;
    }
    if (!opt) {
        r->failed = true;
        unknown(r->command, name, name, r->error);
        return 0;
    }
    /* A file may serve several commands: options of another one are checked, then left alone. */
    if (set_value(r->o, opt, value, r->error) != 0)
        r->failed = true;
    return !r->failed;
}

int options_read_file(struct options *o, unsigned command, const char *path, struct error *error) {
    struct error inner = {0};
    struct file_reader r = {.o = o, .command = command, .error = &inner};
    r.file = fopen(path, "r");
    if (!r.file)
        return error_set(error, ERR_CONFIG, "--config %s: %s", path, strerror(errno));
    int line = ini_parse_stream(next_ini_line, &r, on_ini_key, &r);
    fclose(r.file);
    if (r.failed)
        return error_set(error, ERR_CONFIG, "%s:%d: %s", path, line, inner.text);
    if (r.too_long)
        return error_set(error, ERR_CONFIG, "%s: a line is longer than about 200 bytes", path);
    if (line != 0)
        return error_set(error, ERR_CONFIG, "%s:%d: expected `name = value`", path, line);
    return 0;
}

int options_read_generation_config(struct options *o, const char *model_dir, struct buffer *taken,
                                   struct error *error) {
    static const char *const names[] = {"temperature", "top_k", "top_p", "min_p",
                                        "repetition_penalty"};
    struct error inner = {0};
    char *path = path_join(model_dir, "generation_config.json");
    json_t *root = NULL;
    int rc = 0;
    if (!strcmp(o->generation_config, "auto") && file_exists(path) &&
        !(root = json_parse_file(path, MAX_GENERATION_CONFIG_BYTES, error)))
        rc = ERR_BAD_FILE;
    for (size_t i = 0; rc == 0 && i < sizeof names / sizeof *names; i++) {
        const struct option *opt = find(CMD_SERVE, names[i], "");
        json_t *v = json_object_get(root, names[i]);
        char value[32];
        if (!v || json_is_null(v) || o->given[opt - table])
            continue;
        snprintf(value, sizeof value, "%.9g", json_number_value(v));
        if (!json_is_number(v))
            rc = error_set(error, ERR_BAD_FILE, "%s: %s: expected a number", path, names[i]);
        else if (set_value(o, opt, value, &inner) != 0)
            rc = error_set(error, ERR_CONFIG, "%s: %s (--generation-config none leaves it out)",
                           path, inner.text);
        else
            buffer_printf(taken, "%s%s %s", taken->len ? ", " : "", names[i], value);
    }
    o->server.defaults = o->generation;
    json_decref(root);
    free(path);
    return rc;
}

/* ---- the command line ---- */

/* One argument taken apart. */
struct argument {
    const struct option *option; /* NULL: not known */
    const char *value;           /* after '=', or the next argument; NULL: none */
    bool negated;                /* --no-... */
    int used;                    /* arguments taken: 1 or 2 */
};

static void take_apart(unsigned command, char **argv, int left, struct argument *a) {
    const char *arg = argv[0], *eq = strchr(arg, '=');
    char dashed[80];
    snprintf(dashed, sizeof dashed, "%.*s", (int)(eq ? eq - arg : (long)strlen(arg)), arg);
    bool is_long = !strncmp(dashed, "--", 2);
    memset(a, 0, sizeof *a);
    a->used = 1;
    a->option = find(command, is_long ? dashed + 2 : NULL, dashed);
    if (!a->option && is_long && !strncmp(dashed, "--no-", 5)) {
        a->option = find(command, dashed + 5, "");
        a->negated = true;
        if (a->option && a->option->type != OPT_BOOL)
            a->option = NULL;
    }
    if (!a->option)
        return;
    if (eq) {
        a->value = eq + 1;
    } else if (a->option->type != OPT_BOOL && left > 1) {
        a->value = argv[1];
        a->used = 2;
    }
}

static int apply(struct options *o, const char *arg, const struct argument *a,
                 struct error *error) {
    const struct option *opt = a->option;
    if (opt->type == OPT_BOOL && !a->value) {
        *(bool *)((char *)o + opt->offset) = !a->negated;
        return 0;
    }
    if (a->negated)
        return error_set(error, ERR_CONFIG, "%s: takes no value", arg);
    if (!a->value)
        return error_set(error, ERR_CONFIG, "%s: a value is missing", arg);
    return set_value(o, opt, a->value, error);
}

/* Goes over the arguments once: the first pass reads --config files, the second sets options. */
static int pass(struct options *o, unsigned command, int argc, char **argv, bool files,
                struct error *error) {
    struct argument a;
    for (int i = 1; i < argc; i += a.used) {
        int rc = 0;
        take_apart(command, argv + i, argc - i, &a);
        if (!a.option) {
            if (argv[i][0] != '-')
                return error_set(error, ERR_CONFIG,
                                 "unexpected argument '%s' (a command comes first; see --help)",
                                 argv[i]);
            const char *name = argv[i] + strspn(argv[i], "-");
            char shown[80], bare[80];
            snprintf(shown, sizeof shown, "%.*s", (int)strcspn(argv[i], "="), argv[i]);
            snprintf(bare, sizeof bare, "%.*s", (int)strcspn(name, "="), name);
            return unknown(command, bare, shown, error);
        }
        if (files && a.option->offset == AT(config) && a.value)
            rc = options_read_file(o, command, a.value, error);
        else if (!files)
            rc = apply(o, argv[i], &a, error);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* "3" is GPUs 0, 1 and 2; "3," or "0,3" are lists; a GPU that is named twice has two ranks. */
static int parse_gpus(struct engine_options *e, const char *text, struct error *error) {
    bool list = strchr(text, ',') != NULL;
    const char *p = text;
    e->num_gpus = 0;
    while (*p >= '0' && *p <= '9') {
        char *end;
        long n = strtol(p, &end, 10);
        if (list ? n > 1023 || e->num_gpus == MAX_GPUS : n > MAX_GPUS)
            return error_set(error, ERR_CONFIG, "--gpus %s: up to %d GPUs are possible", text,
                             MAX_GPUS);
        if (!list) {
            for (; e->num_gpus < n; e->num_gpus++)
                e->gpus[e->num_gpus] = e->num_gpus;
        } else {
            e->gpus[e->num_gpus++] = (int32_t)n;
        }
        p = end + (*end == ',');
        if (*end != ',')
            break;
    }
    if (*p || p == text)
        return error_set(error, ERR_CONFIG,
                         "--gpus %s: expected a number of GPUs or a list such as 0,2,3", text);
    return 0;
}

/* "24G", or "24G,24G,12G": sizes of at least a MiB. */
static int parse_gpu_memory(struct options *o, struct error *error) {
    const double least = 1 << 20, most = (double)(1LL << 50);
    o->num_memory = 0;
    for (const char *p = o->gpu_memory; p;) {
        char size[32];
        int len = (int)strcspn(p, ",");
        double bytes = 0;
        snprintf(size, sizeof size, "%.*s", len, p);
        if (len >= (int)sizeof size || !parse_bytes(size, &bytes) || bytes < least || bytes > most)
            return error_set(error, ERR_CONFIG,
                             "--gpu-memory %s: expected sizes such as 24G or 24G,24G,12G",
                             o->gpu_memory);
        if (o->num_memory == MAX_GPUS)
            return error_set(error, ERR_CONFIG, "--gpu-memory %s: up to %d sizes are possible",
                             o->gpu_memory, MAX_GPUS);
        o->memory[o->num_memory++] = (int64_t)bytes;
        p = p[len] ? p + len + 1 : NULL;
    }
    return 0;
}

/* Ranks of one model share a GPU's memory by agreement; replicas know nothing of each other. */
static int check_shared_gpus(const struct options *o, struct error *error) {
    const struct engine_options *e = &o->engine;
    for (int32_t i = 0; i < e->num_gpus && e->replicas > 1; i++)
        for (int32_t k = 0; k < i; k++)
            if (e->gpus[k] == e->gpus[i])
                return error_set(error, ERR_CONFIG,
                                 "--gpus %s: GPU %d twice, but --replicas %d share none", o->gpus,
                                 e->gpus[i], e->replicas);
    return 0;
}

/* --gpus and --device say the same thing twice. */
static int choose_device(struct options *o, struct error *error) {
    struct engine_options *e = &o->engine;
    bool cuda = !strcmp(e->device, "cuda");
    int rc = parse_gpus(e, o->gpus ? o->gpus : cuda ? "1" : "0", error);
    if (rc)
        return rc;
    if (cuda && e->num_gpus == 0)
        return error_set(error, ERR_CONFIG, "--device cuda: --gpus 0 leaves none");
    if (!cuda && e->num_gpus > 0) {
        const struct option *device = find(CMD_SERVE, "device", "");
        if (o->given[device - table])
            return error_set(error, ERR_CONFIG, "--gpus %s: --device %s uses no GPU", o->gpus,
                             e->device);
        e->device = "cuda";
    }
    return 0;
}

int options_parse(struct options *o, unsigned command, int argc, char **argv, struct error *error) {
    int rc = pass(o, command, argc, argv, true, error);
    if (rc == 0)
        rc = pass(o, command, argc, argv, false, error);
    if (rc == 0)
        rc = choose_device(o, error);
    if (rc == 0)
        rc = check_shared_gpus(o, error);
    if (rc == 0)
        rc = parse_gpu_memory(o, error);
    if (rc == 0 && o->generation.min_tokens > o->generation.max_tokens)
        rc = error_set(error, ERR_CONFIG, "--min-tokens %d: more than --max-tokens %d",
                       o->generation.min_tokens, o->generation.max_tokens);
    o->server.defaults = o->generation;
    return rc;
}

/* ---- help ---- */

static void put_default(const struct options *o, const struct option *opt, struct buffer *out) {
    const void *at = (const char *)o + opt->offset;
    const char *s;
    switch (opt->type) {
    case OPT_BOOL:
        if (*(const bool *)at)
            buffer_printf(out, " [on; --no-%s]", opt->name);
        break;
    case OPT_INT:
        buffer_printf(out, " [%d]", *(const int32_t *)at);
        break;
    case OPT_BYTES:
        buffer_printf(out, " [%lld]", (long long)*(const int64_t *)at);
        break;
    case OPT_NUMBER:
        buffer_printf(out, " [%g]", (double)*(const float *)at);
        break;
    case OPT_SEED:
        buffer_printf(out, " [%llu]", (unsigned long long)*(const uint64_t *)at);
        break;
    default:
        s = *(const char *const *)at;
        if (s)
            buffer_printf(out, " [%s]", s);
    }
}

static const char *placeholder(const struct option *opt) {
    switch (opt->type) {
    case OPT_BOOL:
        return "";
    case OPT_INT:
    case OPT_SEED:
        return " N";
    case OPT_BYTES:
        return " BYTES";
    case OPT_NUMBER:
        return " X";
    case OPT_LISTEN:
        return " HOST:PORT";
    default:
        return " TEXT";
    }
}

void options_help(unsigned command, struct buffer *out) {
    struct options defaults;
    options_init(&defaults);
    for (int i = 0; i < NUM_OPTIONS; i++) {
        const struct option *opt = &table[i];
        if (!(opt->commands & command) || !opt->help) /* without help: for tests */
            continue;
        if (!opt->name) {
            buffer_printf(out, "\n%s\n", opt->help);
            continue;
        }
        buffer_printf(out, "  --%s%s", opt->name, placeholder(opt));
        if (*opt->aliases)
            buffer_printf(out, "  (%s)", opt->aliases);
        buffer_printf(out, "\n        %s", opt->help);
        if (opt->choices)
            buffer_printf(out, " (%s)", opt->choices);
        put_default(&defaults, opt, out);
        buffer_putc(out, '\n');
    }
    options_deinit(&defaults);
}
