/* moeserve plan: from config.json alone, what the model weighs, how it is spread over ranks, and
 * whether it and its KV cache fit. No weights are read and no GPU is asked.
 *
 * What a GPU spends besides weights and KV cache is estimated:
 *   activations  estimate.h
 *   embedding    2 H V, unless it is on the host
 *   OTHER_BYTES  CUDA context, cuBLASLt's workspace, recorded graphs, scales and padding of weights
 */
#include <stdio.h>
#include <string.h>

#include "host/cmd.h"
#include "host/engine_model.h"
#include "host/estimate.h"
#include "host/layout.h"
#include "host/log.h"
#include "host/model_config.h"
#include "host/options.h"

enum {
    OTHER_BYTES = 512 << 20,
    PROMPT_LOGITS_ROWS = 64 /* rows of logits of a step beyond one for each sequence */
};

/* What was asked for, in the layout's words. */
struct plan {
    const struct options *options;
    struct model_config config;
    int32_t world_size, max_model_len;
    enum dtype kv_dtype;
    int64_t activations, embedding; /* bytes of each rank, estimated */
    struct layout_options layout_options;
    struct layout layout;
    bool fits;
};

static int64_t activation_bytes(const struct plan *p) {
    const struct engine_options *e = &p->options->engine;
    int32_t ep = p->layout_options.expert_parallel_size;
    const struct estimate_sizes sizes = {
        .max_tokens = e->max_num_batched_tokens,
        .max_logits = e->max_num_seqs + PROMPT_LOGITS_ROWS,
        .max_model_len = p->max_model_len,
        .world_size = p->world_size,
        .tp_size = ep > 0 && ep < p->world_size ? p->world_size / ep
                   : ep > 0                     ? 1
                                                : p->world_size,
    };
    return estimate_activation_bytes(&p->config, &sizes);
}

static enum dtype kv_dtype_of(const char *name) {
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"f32", DTYPE_F32}, {"f16", DTYPE_F16}, {"fp8", DTYPE_F8_E4M3}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i].name))
            return names[i].dtype;
    return DTYPE_BF16; /* auto, too */
}

/* As many ranks as GPUs, sizes of memory, or CPU ranks were given. */
static int count_ranks(struct plan *p, struct error *error) {
    const struct options *o = p->options;
    int32_t sizes = o->num_memory;
    p->world_size = o->engine.num_gpus > 0 ? o->engine.num_gpus
                    : sizes > 1            ? sizes
                                           : o->engine.ranks;
    if (p->world_size > MAX_RANKS)
        return error_set(error, ERR_CONFIG, "--ranks %d: 1 to %d are possible", p->world_size,
                         MAX_RANKS);
    if (sizes > 1 && sizes != p->world_size)
        return error_set(error, ERR_CONFIG,
                         "--gpu-memory %s: %d sizes for %d ranks; give one, or one for each",
                         o->gpu_memory, sizes, p->world_size);
    return 0;
}

static int pose(struct plan *p, struct error *error) {
    const struct options *o = p->options;
    const struct engine_options *e = &o->engine;
    const struct model_config *c = &p->config;
    struct layout_options *l = &p->layout_options;
    int rc = count_ranks(p, error);
    if (rc == 0)
        rc = engine_check_options(e, c->max_position_embeddings, error);
    if (rc)
        return rc;
    p->max_model_len = e->max_model_len > 0 ? e->max_model_len : c->max_position_embeddings;
    p->kv_dtype = kv_dtype_of(e->kv_cache_dtype);
    l->expert_parallel_size = e->expert_parallel_size;
    if (e->expert_parallel_size == 0 && e->enable_expert_parallel)
        l->expert_parallel_size = p->world_size;
    l->elements = layout_elements_of(c, p->kv_dtype);
    l->kv_tokens = (int64_t)e->max_num_seqs * p->max_model_len;
    /* A server told no length takes what there is room for. */
    l->kv_tokens_min = e->max_model_len > 0 ? e->max_model_len : 1;
    p->activations = activation_bytes(p);
    p->embedding = strcmp(e->embedding, "host") ? 2LL * c->hidden_size * c->vocab_size : 0;
    for (int32_t r = 0; r < p->world_size; r++) {
        l->fixed[r] = p->activations + p->embedding + OTHER_BYTES;
        if (o->num_memory > 0)
            l->memory[r] = (int64_t)((double)o->memory[o->num_memory > 1 ? r : 0] *
                                     (double)e->gpu_memory_utilization);
    }
    return 0;
}

/* "46.70 B", "4.73 M" */
static void print_count(int64_t n) {
    bool millions = n < 1000000000;
    printf("%.2f %c", (double)n / (millions ? 1e6 : 1e9), millions ? 'M' : 'B');
}

static double gb(int64_t bytes) {
    return (double)bytes / 1e9;
}

static void print_kinds(const char *name, int64_t bytes) {
    if (bytes > 0)
        printf(", %s %.3f", name, gb(bytes));
}

/* Once for the whole model, whatever the ranks. */
static void print_model(const struct plan *p) {
    const struct model_config *c = &p->config;
    struct layout_sizes s = layout_sizes_of(c, &p->layout_options.elements);
    int64_t attention = c->num_attention_heads * s.q_head + c->num_key_value_heads * s.kv_head;
    int64_t experts = (int64_t)c->router.num_experts * c->moe_intermediate_size * s.expert_column;
    int64_t ffn = c->intermediate_size * s.ffn_column, vocabulary = c->vocab_size * s.vocab_row;
    printf("  model       %s, %d layers, hidden %d, %d/%d heads of %d", c->family,
           c->num_hidden_layers, c->hidden_size, c->num_attention_heads, c->num_key_value_heads,
           c->head_dim);
    if (c->router.num_experts > 0)
        printf(", %d experts top-%d", c->router.num_experts, c->router.num_experts_per_tok);
    printf("\n  parameters  ");
    print_count(model_config_parameters(c));
    printf(", ");
    print_count(model_config_active_parameters(c));
    printf(" active\n");
    printf("  weights     %.3f GB: attention %.3f",
           gb(attention + experts + ffn + vocabulary + s.replicated), gb(attention));
    print_kinds("experts", experts);
    print_kinds("FFN", ffn);
    printf(", vocabulary %.3f, router and norms %.3f; %s\n", gb(vocabulary), gb(s.replicated),
           c->fp8 ? "FP8, the last two BF16" : "BF16");
    printf("  KV cache    %lld bytes a token (%s)\n",
           (long long)(c->num_key_value_heads * s.kv_head_token), dtype_name(p->kv_dtype));
}

static void print_ranks(const struct plan *p) {
    const struct layout *l = &p->layout;
    char experts[80];
    if (p->config.router.num_experts == 0 || l->world_size == 1)
        experts[0] = '\0';
    else if (l->ep_size == 1)
        snprintf(experts, sizeof experts, ", every expert cut by columns");
    else if (l->tp_size == 1)
        snprintf(experts, sizeof experts, ", whole experts");
    else
        snprintf(experts, sizeof experts, ", experts in %d groups, cut %d times in each",
                 l->ep_size, l->tp_size);
    printf("  ranks       %d%s\n", l->world_size, experts);
    printf(
        "  estimates   on each rank: activations %.3f GB, embedding %.3f, CUDA and graphs %.3f\n",
        gb(p->activations), gb(p->embedding), gb(OTHER_BYTES));
    for (int32_t r = 0; r < l->world_size; r++) {
        struct layout_bytes b = layout_bytes(l, r);
        printf("  rank %-2d     weights %.3f GB", r, gb(b.weights));
        if (l->rank[r].memory > 0)
            printf(", %.3f of %.3f left for KV at %lld bytes a token",
                   gb(l->rank[r].memory - b.weights - b.fixed), gb(l->rank[r].memory),
                   (long long)b.kv_per_token);
        putchar('\n');
    }
}

/* The rank whose KV cache is full first. */
static int32_t tightest(const struct layout *l) {
    double least = 1e300;
    int32_t rank = 0;
    for (int32_t r = 0; r < l->world_size; r++) {
        struct layout_bytes b = layout_bytes(l, r);
        double tokens = b.kv_per_token == 0 ? 1e300
                                            : (double)(l->rank[r].memory - b.weights - b.fixed) /
                                                  (double)b.kv_per_token;
        if (tokens < least) {
            least = tokens;
            rank = r;
        }
    }
    return rank;
}

static void print_verdict(const struct plan *p) {
    const struct layout *l = &p->layout;
    if (l->rank[0].memory == 0) {
        printf("  fits        not known without --gpu-memory\n");
        return;
    }
    if (!p->fits) {
        printf("  fits        no\n");
        return;
    }
    int32_t tokens = layout_kv_tokens(l);
    printf("  KV room     %d tokens (rank %d is the tightest): ", tokens, tightest(l));
    if (tokens >= p->max_model_len)
        printf("%.1f sequences of %d\n", (double)tokens / p->max_model_len, p->max_model_len);
    else
        printf("less than one sequence of %d\n", p->max_model_len);
    printf("  fits        yes\n");
}

static void print_drawing(const struct plan *p) {
    struct buffer text = {0};
    layout_draw(&p->layout, &p->config, &text);
    printf("\n%.*s", (int)text.len, text.data);
    buffer_deinit(&text);
}

static int plan(const struct options *o, struct error *error) {
    struct plan p = {.options = o};
    int rc = cmd_check_model(o, error);
    if (rc == 0)
        rc = model_config_load(o->engine.model, &p.config, error);
    if (rc == 0)
        rc = pose(&p, error);
    if (rc)
        return rc;
    rc = layout_make(&p.config, p.world_size, &p.layout_options, &p.layout, error);
    if (rc && rc != ERR_NO_MEMORY)
        return rc;
    p.fits = rc == 0;
    print_model(&p);
    print_ranks(&p);
    print_verdict(&p);
    if (o->layout)
        print_drawing(&p);
    fflush(stdout);
    return rc;
}

int cmd_plan(int argc, char **argv) {
    struct options o;
    struct error e = {0};
    int status;
    if (cmd_start(&o, CMD_PLAN, argc, argv, "plan --model DIR [OPTION ...]", &status)) {
        if (plan(&o, &e) != 0)
            status = cmd_fail(&e);
    }
    options_deinit(&o);
    return status;
}
