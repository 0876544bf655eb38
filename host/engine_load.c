/* engine_load: from engine_options to a loaded model with its tokenizer; the other half of
 * engine_create. Order: everything cheap that can fail (options, config, tokenizer, template) comes
 * before the weights.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "host/chat_template.h"
#include "host/cuda.h"
#include "host/engine_model.h"
#include "host/error.h"
#include "host/file.h"
#include "host/group.h"
#include "host/log.h"
#include "host/mem.h"
#include "host/model.h"
#include "host/ranks.h"

/* Rows of logits of a step beyond one for each sequence: the share of prompt_logprobs. */
enum { PROMPT_LOGITS_ROWS = 64 };

/* For which a process may be behind the others while they load. */
#define LOADING_TIMEOUT_US ((int64_t)3600 * 1000000)

/* Lives as long as the engine: the model borrows config and weights. */
struct loaded {
    struct model_config config;
    struct weights weights;
    struct model *model;
    struct group *group; /* borrowed; NULL: this process is alone */
};

static void loaded_destroy(void *ctx) {
    struct loaded *l = ctx;
    if (!l || (l->model && model_lost(l->model))) /* its ranks may still read the weights */
        return;
    model_destroy(l->model);
    weights_close(&l->weights);
    free(l);
}

static int loaded_run(void *ctx, const struct batch *batch, float **logits, struct error *error) {
    struct loaded *l = ctx;
    return model_run(l->model, batch, logits, error);
}

static int loaded_sample(void *ctx, const struct sample_job *jobs, int32_t num_jobs,
                         struct sample_outcome *outcomes, struct error *error) {
    struct loaded *l = ctx;
    return model_sample(l->model, jobs, num_jobs, outcomes, error);
}

static int loaded_recover(void *ctx, struct error *error) {
    struct loaded *l = ctx;
    return model_recover(l->model, error);
}

static int loaded_check(void *ctx, struct error *error) {
    struct loaded *l = ctx;
    return group_failed(l->group, error) ? ERR_INTERNAL : 0;
}

static void loaded_describe(void *ctx, struct buffer *out) {
    struct loaded *l = ctx;
    model_describe(l->model, out);
}

static void loaded_measure(void *ctx, struct model_metrics *out) {
    struct loaded *l = ctx;
    model_measure(l->model, out);
}

static int choose_ops(const struct engine_options *o, const struct ops **out, struct error *error) {
    if (!strcmp(o->device, "cpu")) {
        *out = cpu_ops(o->cpu_isa, error);
        return *out ? 0 : ERR_UNSUPPORTED;
    }
    if (!strcmp(o->device, "ref")) {
        *out = &ref_ops;
        return 0;
    }
    if (!strcmp(o->device, "cuda")) {
        *out = cuda_ops(o->gpus, o->num_gpus, o->batch_invariant, error);
        return *out ? 0 : ERR_UNSUPPORTED;
    }
    return error_set(error, ERR_CONFIG, "--device %s: unknown, the devices are cpu, cuda and ref",
                     o->device);
}

static int choose_kv_dtype(const char *name, enum dtype *out, struct error *error) {
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"auto", DTYPE_NONE},
                 {"f32", DTYPE_F32},
                 {"bf16", DTYPE_BF16},
                 {"f16", DTYPE_F16},
                 {"fp8", DTYPE_F8_E4M3}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i].name)) {
            *out = names[i].dtype;
            return 0;
        }
    return error_set(error, ERR_CONFIG,
                     "--kv-cache-dtype %s: unknown, there are auto, f32, bf16, f16 and fp8", name);
}

static bool is_f8(const struct tensor_source *t) {
    return t->rows > 0 && t->dtype == DTYPE_F8_E4M3;
}

/* Does any product of the model have FP8 weights? */
static bool has_f8_weights(const struct weights *w) {
    for (int32_t i = 0; i < w->num_layers; i++) {
        const struct layer_source *l = &w->layers[i];
        if (is_f8(&l->q) || is_f8(&l->k) || is_f8(&l->v) || is_f8(&l->o))
            return true;
        for (int32_t e = 0; e < l->num_experts; e++)
            if (is_f8(&l->experts[e].gate) || is_f8(&l->experts[e].down))
                return true;
    }
    return false;
}

static int choose_activations(const struct engine_options *o, const struct weights *w, bool *fp8,
                              struct error *error) {
    *fp8 = !strcmp(o->activation_dtype, "fp8");
    if (!*fp8 && strcmp(o->activation_dtype, "bf16"))
        return error_set(error, ERR_CONFIG,
                         "--activation-dtype %s: unknown, there are bf16 and fp8",
                         o->activation_dtype);
    if (*fp8 && !has_f8_weights(w))
        return error_set(
            error, ERR_CONFIG,
            "--activation-dtype fp8: %s has no FP8 weights, and FP8 activations go with "
            "those alone; leave the option out",
            o->model);
    return 0;
}

static int choose_chat_template(const struct engine_options *o, const struct chat_template **out,
                                struct error *error) {
    bool found_unknown = false;
    if (o->chat_template) {
        *out = chat_template_find(o->chat_template);
        if (!*out)
            return error_set(error, ERR_CONFIG, "--chat-template %s: unknown, there are %s",
                             o->chat_template, chat_template_names());
        return 0;
    }
    *out = chat_template_recognise(o->model, &found_unknown);
    if (found_unknown)
        log_warn("the model's chat template is not one that is built in (%s): messages need "
                 "--chat-template",
                 chat_template_names());
    return 0;
}

/* A dummy model may come without a tokenizer; then requests are by token ids and texts are empty.
 */
static int load_tokenizer(const struct engine_options *o, bool dummy, struct tokenizer **out,
                          struct error *error) {
    int rc = tokenizer_load(o->model, out, error);
    if (rc != ERR_NOT_FOUND || !dummy)
        return rc;
    log_warn("%s has no tokenizer: only requests by token ids work, and texts are empty", o->model);
    *out = NULL;
    return 0;
}

/* A tokenizer may know fewer tokens than the model has rows, not more. */
static int check_vocabulary(const struct engine_options *o, const struct tokenizer *t,
                            int32_t vocab_size, struct error *error) {
    struct token_list added = {0};
    int rc = 0;
    if (!t || tokenizer_vocab_size(t) <= vocab_size)
        return 0;
    tokenizer_encode(t, "", 0, TOKENIZER_ADD_SPECIAL, &added);
    for (size_t i = 0; i < added.len && rc == 0; i++)
        if (added.ids[i] >= vocab_size)
            rc = error_set(error, ERR_BAD_FILE,
                           "%s: the tokenizer puts token %d into every prompt, vocab_size is %d",
                           o->model, added.ids[i], vocab_size);
    if (rc == 0)
        log_warn("%s: the tokenizer has ids up to %d, vocab_size is %d: texts with such tokens are "
                 "refused",
                 o->model, tokenizer_vocab_size(t) - 1, vocab_size);
    free(added.ids);
    return rc;
}

static int check_load_options(const struct engine_options *o, bool *dummy, struct error *error) {
    if (!o->model || !o->model[0])
        return error_set(error, ERR_CONFIG, "no model folder was given (--model)");
    *dummy = !strcmp(o->load_format, "dummy");
    if (!*dummy && strcmp(o->load_format, "auto"))
        return error_set(error, ERR_CONFIG, "--load-format %s: unknown, there are auto and dummy",
                         o->load_format);
    if (!strcmp(o->device, "cuda") && o->num_gpus < 1)
        return error_set(error, ERR_CONFIG, "--device cuda: no GPU was given (--gpus)");
    if (!strcmp(o->device, "cuda") && o->ranks > 1)
        return error_set(error, ERR_CONFIG,
                         "--ranks %d: ranks of the CPU; on GPUs there is one for each of --gpus",
                         o->ranks);
    if (o->ranks < 1 || o->ranks > MAX_RANKS)
        return error_set(error, ERR_CONFIG, "--ranks %d: 1 to %d are possible", o->ranks,
                         MAX_RANKS);
    return 0;
}

static int32_t available_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    return CPU_COUNT(&set);
}

/* The replica's part of the CPU threads. */
static int32_t threads_of(const struct engine_options *o) {
    int32_t all = o->threads > 0 ? o->threads : available_cores();
    int32_t part = all / o->replicas + (o->replica < all % o->replicas);
    return part > 0 ? part : 1;
}

static int create_model(const struct engine_options *o, const struct ops *ops, struct loaded *l,
                        struct error *error) {
    enum dtype kv_dtype = DTYPE_NONE;
    struct fault fault;
    bool fp8_activations = false;
    int rc = choose_kv_dtype(o->kv_cache_dtype, &kv_dtype, error);
    if (rc == 0)
        rc = fault_parse(o->fault, &fault, error);
    if (rc == 0)
        rc = choose_activations(o, &l->weights, &fp8_activations, error);
    if (rc)
        return rc;
    int32_t expert_parallel_size = o->expert_parallel_size;
    if (expert_parallel_size == 0 && o->enable_expert_parallel)
        expert_parallel_size = EXPERT_PARALLEL_ALL;
    const struct model_options options = {
        .ops = ops,
        .num_ranks = o->num_gpus > 0 ? o->num_gpus : o->ranks,
        .threads = threads_of(o),
        .layout = {.expert_parallel_size = expert_parallel_size},
        .max_tokens = o->max_num_batched_tokens,
        .max_seqs = o->max_num_seqs,
        .max_logits = o->max_num_seqs + PROMPT_LOGITS_ROWS,
        .max_model_len =
            o->max_model_len > 0 ? o->max_model_len : l->config.max_position_embeddings,
        .kv_dtype = kv_dtype,
        .num_kv_blocks = o->num_kv_blocks,
        .kv_bytes = o->kv_cache_memory_bytes,
        .kv_sharers = o->num_gpus > 0 ? 0 : o->ranks * o->replicas,
        .fp8_activations = fp8_activations,
        .progress = o->progress,
        .gpus = o->num_gpus > 0 ? o->gpus : NULL,
        .gpu_memory_utilization = o->gpu_memory_utilization,
        .allreduce = o->allreduce,
        .allreduce_dtype = o->allreduce_dtype,
        .batch_invariant = o->batch_invariant,
        .enforce_eager = o->enforce_eager,
        .embedding_on_host = !strcmp(o->embedding, "host"),
        .comm_timeout_us = (int64_t)((double)o->comm_timeout_s * 1e6),
        .fault = fault,
        .count_experts = o->expert_metrics,
        .measure_bandwidth = o->bandwidth_metrics,
        .group = o->group,
    };
    return model_create(&l->config, &l->weights, &options, &l->model, error);
}

/* The name of a folder, "." and links resolved; to be freed. */
static char *last_component(const char *path) {
    char *real = realpath(path, NULL);
    const char *slash = real ? strrchr(real, '/') : NULL;
    char *name = xstrdup(slash && slash[1] ? slash + 1 : path);
    free(real);
    return name;
}

static int start_engine(const struct engine_options *o, struct loaded *l,
                        struct tokenizer *tokenizer, const struct chat_template *chat_template,
                        void (*wake)(void *), void *wake_ctx, struct engine **out,
                        struct error *error) {
    char *name = o->served_model_name ? xstrdup(o->served_model_name) : last_component(o->model);
    struct engine_model model = {
        .ctx = l,
        .run = loaded_run,
        .sample = model_samples(l->model) ? loaded_sample : NULL,
        .recover = loaded_recover,
        .check = l->group ? loaded_check : NULL,
        .describe = loaded_describe,
        .measure = loaded_measure,
        .destroy = loaded_destroy,
        .name = name,
        .ranks = model_layout(l->model)->world_size,
        .vocab_size = l->config.vocab_size,
        .num_kv_blocks = model_num_kv_blocks(l->model),
        .max_model_len = l->config.max_position_embeddings,
        .max_logits = o->max_num_seqs + PROMPT_LOGITS_ROWS,
        .num_eos_ids = l->config.num_eos_token_ids,
    };
    memcpy(model.eos_ids, l->config.eos_token_ids, sizeof l->config.eos_token_ids);
    int rc =
        engine_create_with_model(o, &model, tokenizer, chat_template, wake, wake_ctx, out, error);
    free(name);
    return rc;
}

/* ---- processes that load together ------------------------------------------------------------ */

/* What all processes must have said alike, one after the other, so that who differs is told in
 * what. Threads, GPUs and ranks are each machine's own. */
static int agree_on_options(const struct engine_options *o, struct error *error) {
    const struct {
        const char *name, *text;
        int32_t number;
    } options[] = {
        {"the version", MOESERVE_VERSION, 0},
        {"--device", o->device, 0},
        {"--load-format", o->load_format, 0},
        {"--kv-cache-dtype", o->kv_cache_dtype, 0},
        {"--activation-dtype", o->activation_dtype, 0},
        {"--enable-expert-parallel", "", o->enable_expert_parallel},
        {"--expert-parallel-size", "", o->expert_parallel_size},
        {"--max-model-len", "", o->max_model_len},
        {"--max-num-seqs", "", o->max_num_seqs},
        {"--max-num-batched-tokens", "", o->max_num_batched_tokens},
        {"--num-kv-blocks", "", o->num_kv_blocks},
        {"--batch-invariant", "", o->batch_invariant},
    };
    struct buffer value = {0};
    int rc = 0;
    for (size_t i = 0; i < sizeof options / sizeof *options && rc == 0; i++) {
        buffer_clear(&value);
        buffer_printf(&value, "%s %d", options[i].text, options[i].number);
        rc = group_agree(o->group, options[i].name, value.data, value.len, error);
    }
    buffer_deinit(&value);
    return rc;
}

/* Do all processes load the same model in the same way? Loading takes some longer than others. */
static int agree(const struct engine_options *o, struct error *error) {
    enum { MAX_CONFIG_BYTES = 16 << 20 };
    char *path, *config = NULL;
    size_t len = 0;
    if (!o->group)
        return 0;
    group_set_wait(o->group, LOADING_TIMEOUT_US);
    int rc = agree_on_options(o, error);
    path = path_join(o->model, "config.json");
    if (rc == 0)
        rc = file_read(path, MAX_CONFIG_BYTES, &config, &len, error);
    if (rc == 0)
        rc = group_agree(o->group, "config.json", config, len, error);
    free(config);
    free(path);
    return rc;
}

/* What is cheap and can fail, but for what only requests need. */
static int begin_loading(const struct engine_options *o, const struct ops **ops, bool *dummy,
                         struct loaded *l, struct error *error) {
    int rc;
    l->group = o->group;
    if ((rc = check_load_options(o, dummy, error)) || (rc = choose_ops(o, ops, error)) ||
        (rc = model_config_load(o->model, &l->config, error)) ||
        (rc = engine_check_options(o, l->config.max_position_embeddings, error)))
        return rc;
    return agree(o, error);
}

static int load_model(const struct engine_options *o, const struct ops *ops, bool dummy,
                      struct loaded *l, struct error *error) {
    int rc = 0;
    if (dummy)
        weights_dummy(&l->config, &l->weights);
    else
        rc = weights_open(o->model, &l->config, &l->weights, error);
    if (rc == 0)
        rc = create_model(o, ops, l, error);
    if (rc == 0 && o->group)
        rc = group_barrier(o->group, error);
    if (rc == 0 && o->group)
        group_set_wait(o->group, ranks_wait_us((int64_t)((double)o->comm_timeout_s * 1e6)));
    return rc;
}

int engine_create(const struct engine_options *o, void (*wake)(void *), void *wake_ctx,
                  struct engine **out, struct error *error) {
    const struct ops *ops = NULL;
    const struct chat_template *chat_template = NULL;
    struct tokenizer *tokenizer = NULL;
    struct loaded *l = xcalloc(1, sizeof *l);
    bool dummy = false;
    int rc;
    if ((rc = begin_loading(o, &ops, &dummy, l, error)) ||
        (rc = load_tokenizer(o, dummy, &tokenizer, error)) ||
        (rc = check_vocabulary(o, tokenizer, l->config.vocab_size, error)) ||
        (rc = choose_chat_template(o, &chat_template, error)) ||
        (rc = load_model(o, ops, dummy, l, error)) ||
        (rc = start_engine(o, l, tokenizer, chat_template, wake, wake_ctx, out, error))) {
        tokenizer_free(tokenizer);
        loaded_destroy(l);
    }
    return rc;
}

int engine_follow(const struct engine_options *o, struct error *error) {
    const struct ops *ops = NULL;
    struct loaded *l = xcalloc(1, sizeof *l);
    bool dummy = false;
    int rc;
    if ((rc = begin_loading(o, &ops, &dummy, l, error)) == 0 &&
        (rc = load_model(o, ops, dummy, l, error)) == 0) {
        log_info("following process 0 with %d of %d ranks", model_num_ranks(l->model),
                 model_layout(l->model)->world_size);
        rc = model_follow(l->model, error);
    }
    loaded_destroy(l);
    return rc;
}
