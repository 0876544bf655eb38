/* options: the table, defaults, and finding a row of it. See options.h, and options_internal.h for
 * the rest. */
#include "host/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/error.h"
#include "host/layout.h"
#include "host/mem.h"
#include "host/nearest.h"
#include "host/options_internal.h"

#define AT(member) offsetof(struct options, member)
#define HEADING(commands, text)                                                                    \
    { NULL, NULL, OPT_BOOL, commands, 0, 0, 0, NULL, text }

/* clang-format off */
const struct option option_table[] = {
    HEADING(ALL, "Model"),
    {"model", "-m --model-path", OPT_STRING, ALL, AT(engine.model), 0, 0, NULL,
     "folder of a checkpoint: config.json, *.safetensors, tokenizer; without it the demo model"},
    {"served-model-name", "-a --alias --model-name", OPT_NAME, BOTH, AT(engine.served_model_name), 0, 0, NULL,
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
    {"ranks", "-tp --tp --tensor-parallel-size", OPT_INT, ALL, AT(engine.ranks), 1, MAX_RANKS, NULL,
     "CPU ranks that the model, or each of its replicas, is spread over"},
    {"replicas", "-dp --dp --data-parallel-size --dp-size", OPT_INT, CMD_SERVE, AT(engine.replicas), 1, MAX_REPLICAS, NULL,
     "copies of the model that share the requests; the GPUs, or the CPU threads, are divided among them"},
    {"enable-expert-parallel", "", OPT_BOOL, ALL, AT(engine.enable_expert_parallel), 0, 0, NULL,
     "whole experts per rank instead of a slice of each"},
    {"expert-parallel-size", "--ep --ep-size", OPT_INT, ALL, AT(engine.expert_parallel_size), 0, MAX_RANKS, NULL,
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
     "HOST:PORT of the line protocol, port 0: any free one; unix:PATH; off"},
    {"http", "", OPT_LISTEN, CMD_SERVE, AT(server.http), 0, 0, NULL,
     "the same of HTTP; without it and with the port taken, no HTTP"},
    {"tls-cert", "--ssl-certfile --ssl-cert-file", OPT_STRING, CMD_SERVE, AT(server.tls_cert), 0, 0, NULL,
     "PEM file of a certificate and its chain: both protocols through TLS"},
    {"tls-key", "--ssl-keyfile --ssl-key-file", OPT_STRING, CMD_SERVE, AT(server.tls_key), 0, 0, NULL,
     "PEM file of its private key"},
    {"cors-origin", "", OPT_ORIGIN, CMD_SERVE, AT(server.cors_origin), 0, 0, NULL,
     "origin whose web pages may use HTTP, such as https://chat.example, or *; without it the server's own"},
    {"max-connections", "", OPT_INT, CMD_SERVE, AT(server.max_connections), 1, 1 << 20, NULL,
     "clients at once"},
    {"max-requests-per-connection", "", OPT_INT, CMD_SERVE, AT(server.max_requests_per_connection), 1, 1 << 20, NULL,
     "requests in flight of one client"},
    {"max-line-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_line_bytes), 1024, 1 << 30, NULL,
     "longest request line"},
    {"max-body-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_body_bytes), 1024, 1 << 30, NULL,
     "longest body of an HTTP request"},
    {"max-unsent-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_unsent_bytes), 4096, 1LL << 40, NULL,
     "answers that a client may leave unread before it is cut off"},
    {"max-buffered-bytes", "", OPT_BYTES, CMD_SERVE, AT(server.max_buffered_bytes), 1 << 20, 1LL << 50, NULL,
     "unfinished lines and unread answers of all clients together"},
    {"line-timeout", "", OPT_INT, CMD_SERVE, AT(server.line_timeout_s), 0, 86400, NULL,
     "seconds in which a line that has begun must end; 0: no limit"},
    {"expert-metrics", "", OPT_BOOL, CMD_SERVE, AT(engine.expert_metrics), 0, 0, NULL,
     "count the tokens of every layer and expert for /metrics and /stats"},
    {"bandwidth-metrics", "", OPT_BOOL, CMD_SERVE, AT(engine.bandwidth_metrics), 0, 0, NULL,
     "measure at start what memory can be read at, and count for /metrics how much of it steps take"},
    {"drain-timeout", "", OPT_INT, CMD_SERVE, AT(server.drain_timeout_s), 0, 86400, NULL,
     "seconds that running requests get when the server is told to stop"},
    {"stall-timeout", "", OPT_INT, CMD_SERVE, AT(server.stall_timeout_s), 1, 86400, NULL,
     "seconds without a step, while requests run, before /health answers 503"},

    {NULL, NULL, OPT_BOOL, CMD_SERVE, 0, 0, 0, NULL, "Who may use the server"},
    {"api-key", "", OPT_SECRETS, CMD_SERVE, AT(api_keys), 0, 0, NULL,
     "a key that clients must show; may be repeated. In a file or in the environment others do not see it"},
    {"api-key-file", "", OPT_STRING, CMD_SERVE, AT(keys.file), 0, 0, NULL,
     "file of keys, one a line, with names and limits (docs/OPERATIONS.md); SIGHUP reads it again"},
    {"max-requests-per-key", "", OPT_INT, CMD_SERVE, AT(keys.max_requests), 0, 1 << 20, NULL,
     "requests at once of a key whose line says nothing else; 0: any number"},
    {"tokens-per-minute-per-key", "", OPT_INT64, CMD_SERVE, AT(keys.tokens_per_minute), 0, 1e12, NULL,
     "prompt and generated tokens a minute of such a key; 0: any number"},
    {"insecure", "", OPT_BOOL, CMD_SERVE, AT(server.insecure), 0, 0, NULL,
     "serve without a key on addresses that other machines reach"},

    {NULL, NULL, OPT_BOOL, CMD_GENERATE, 0, 0, 0, NULL, "Prompt"},
    {"prompt", "-p", OPT_STRING, CMD_GENERATE, AT(prompt), 0, 0, NULL,
     "text to go on from; without it standard input is read to its end"},
    {"chat", "", OPT_BOOL, CMD_GENERATE, AT(chat), 0, 0, NULL,
     "the prompt is a user's message, put into the model's chat template"},

    HEADING(ALL, "General"),
    {"config", "", OPT_STRING, ALL, AT(config), 0, 0, NULL,
     "INI file with options as `name = value` lines; variables MOESERVE_<NAME> win over it, flags over both"},
    {"log-format", "", OPT_CHOICE, ALL, AT(log_format), 0, 0, "text json",
     "on standard error; json: an object a line"},
    {"log-level", "", OPT_CHOICE, ALL, AT(log_level), 0, 0, "error warn info debug",
     "what is logged; serve: SIGUSR1 makes it more, SIGUSR2 less"},
    {"verbose", "-v", OPT_BOOL, ALL, AT(verbose), 0, 0, NULL, "the same as --log-level debug; of several the last one counts"},
    {"quiet", "-q", OPT_BOOL, ALL, AT(quiet), 0, 0, NULL, "the same as --log-level warn; likewise"},
    {"log-requests", "", OPT_BOOL, CMD_SERVE, AT(log_requests), 0, 0, NULL,
     "a line for every request that has ended, at level info instead of debug"},
    {"help", "-h", OPT_BOOL, ALL, AT(help), 0, 0, NULL, "print this text"},
    {"version", "-V", OPT_BOOL, ALL, AT(version), 0, 0, NULL, "print the version"},
};
/* clang-format on */
enum { NUM_OPTIONS = sizeof option_table / sizeof *option_table };
const int num_options = NUM_OPTIONS;
_Static_assert((int)NUM_OPTIONS <= (int)MAX_OPTIONS, "options.source has a place for each");

void options_init(struct options *o) {
    memset(o, 0, sizeof *o);
    engine_options_default(&o->engine);
    server_options_default(&o->server);
    request_params_default(&o->generation);
    o->generation_config = "auto";
    o->log_format = "text";
    o->log_level = "info";
}

void options_deinit(struct options *o) {
    for (int32_t i = 0; i < o->num_strings; i++)
        free(o->strings[i]);
    free(o->strings);
    free(o->api_keys.items);
    memset(o, 0, sizeof *o);
}

void options_keep(struct options *o, char *string) {
    o->strings = xrealloc(o->strings, (size_t)(o->num_strings + 1) * sizeof *o->strings);
    o->strings[o->num_strings++] = string;
}

/* ---- looking up ---- */

bool option_in_list(const char *list, const char *word) {
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

const struct option *option_find(unsigned command, const char *name, const char *dashed) {
    for (int i = 0; i < NUM_OPTIONS; i++) {
        const struct option *opt = &option_table[i];
        if (!opt->name || !(opt->commands & command))
            continue;
        if ((name && same_name(opt->name, name)) || option_in_list(opt->aliases, dashed))
            return opt;
    }
    return NULL;
}

const struct option *option_find_bare(const char *name) {
    static const char *const dashes[] = {"-", "--"};
    const struct option *opt = option_find(ALL, name, "");
    for (int i = 0; !opt && i < 2; i++) {
        char dashed[64];
        snprintf(dashed, sizeof dashed, "%s%s", dashes[i], name);
        opt = option_find(ALL, NULL, dashed);
    }
    return opt;
}

const struct option *option_named(const char *name) {
    const struct option *opt = option_find(ALL, name, "");
    CHECK(opt, "no option %s", name);
    return opt;
}

const char *option_nearest(unsigned command, const char *name) {
    const char *names[NUM_OPTIONS];
    size_t count = 0;
    for (int i = 0; i < NUM_OPTIONS; i++)
        if (option_table[i].name && (option_table[i].commands & command))
            names[count++] = option_table[i].name;
    return nearest_name(names, count, name);
}

bool option_is_flag_only(const struct option *opt) {
    return opt->offset == AT(config) || opt->offset == AT(help) || opt->offset == AT(version);
}
