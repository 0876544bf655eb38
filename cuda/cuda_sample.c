/* cuda_sample: the jobs of a step on its logits. What they need goes to the device in pinned memory
 * that the kernel reads itself, and the outcomes come back the same way: the logits stay there. */
#include <string.h>

#include "cuda/cuda_backend.h"
#include "host/sample_job.h"

_Static_assert((int)SAMPLE_MAX_TOP == (int)MAX_LOGPROBS, "the same limit on both sides");

/* How far the pinned arrays are filled. */
struct fill {
    int32_t counts, banned, biases, masks;
};

static int32_t put_counts(struct backend *b, struct fill *f, const struct token_counts *counts) {
    int32_t n = counts ? counts->num_entries : 0;
    for (int32_t i = 0; i < n; i++)
        b->sample_counts[f->counts + i] =
            (struct sample_count){counts->entries[i].token, counts->entries[i].generated};
    f->counts += n;
    return n;
}

static void put_biases(struct backend *b, struct fill *f, const struct sample_args *a) {
    CHECK(a->num_biases <= MAX_LOGIT_BIASES, "%d biased tokens", a->num_biases);
    for (int32_t i = 0; i < a->num_biases; i++)
        b->sample_biases[f->biases + i] =
            (struct sample_bias){a->biases[i].token, a->biases[i].bias};
    f->biases += a->num_biases;
}

/* 1 + the number of the mask; 0: there is none. */
static int32_t put_mask(struct backend *b, struct fill *f, const uint32_t *mask) {
    size_t words = sample_mask_words(b->config.vocab_size);
    if (!mask)
        return 0;
    memcpy(b->sample_masks + (size_t)f->masks * words, mask, words * sizeof *mask);
    return ++f->masks;
}

static struct sample_row draw_row(struct backend *b, const struct sample_job *job, struct fill *f) {
    const struct sample_args *a = &job->args;
    const struct sampling_params *p = a->params;
    struct sample_row row = {
        .row = job->row,
        .token = -1,
        .num_top = p->logprobs > 0 ? p->logprobs : 0,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .top_k = p->top_k > 0 ? p->top_k : 0,
        .repetition_penalty = p->repetition_penalty,
        .presence_penalty = p->presence_penalty,
        .frequency_penalty = p->frequency_penalty,
        .counts_first = f->counts,
        .banned_first = f->banned,
        .banned_num = a->num_banned,
        .biases_first = f->biases,
        .biases_num = a->num_biases,
        .mask = put_mask(b, f, a->mask),
        .seed = p->seed,
        .index = a->index,
    };
    CHECK(a->num_banned <= MAX_BANNED, "%d banned tokens", a->num_banned);
    row.counts_num = put_counts(b, f, a->counts);
    put_biases(b, f, a);
    memcpy(b->sample_banned + f->banned, a->banned, (size_t)a->num_banned * sizeof *a->banned);
    f->banned += a->num_banned;
    return row;
}

/* A check is a greedy draw whose token nobody wants. */
static struct sample_row row_of(struct backend *b, const struct sample_job *job, struct fill *f) {
    if (job->kind == SAMPLE_DRAW)
        return draw_row(b, job, f);
    return (struct sample_row){
        .row = job->row,
        .token = job->kind == SAMPLE_SCORE ? job->token : -1,
        .num_top = job->num_top,
        .top_p = 1,
        .repetition_penalty = 1,
        .counts_first = f->counts,
        .banned_first = f->banned,
    };
}

static void take_result(const struct sample_result *r, struct sample_outcome *out) {
    out->rc = r->token < 0 ? ERR_INTERNAL : 0;
    out->sample.token = r->token;
    out->sample.logprob = r->logprob;
    out->sample.num_top = r->num_top;
    memcpy(out->sample.top_tokens, r->top_tokens, sizeof out->sample.top_tokens);
    memcpy(out->sample.top_logprobs, r->top_logprobs, sizeof out->sample.top_logprobs);
}

/* As many of the jobs as the counts have room for (at least one); returns how many. */
static int32_t sample_some(struct backend *b, const float *logits, const struct sample_job *jobs,
                           int32_t num_jobs, struct sample_outcome *outcomes) {
    struct fill f = {0};
    int32_t n = 0;
    for (; n < num_jobs && n < b->config.max_logits; n++) {
        const struct token_counts *counts = jobs[n].args.counts;
        if (n > 0 && counts && counts->num_entries > b->max_sample_counts - f.counts)
            break;
        b->sample_rows[n] = row_of(b, &jobs[n], &f);
    }
    const struct sample_launch_args a = {
        .logits = logits,
        .vocab_size = b->config.vocab_size,
        .rows = b->sample_rows,
        .num_rows = n,
        .counts = b->sample_counts,
        .banned = b->sample_banned,
        .biases = b->sample_biases,
        .masks = b->sample_masks,
        .results = b->sample_results,
        .workspace = b->sample_workspace,
    };
    sample_launch(&a, b->stream);
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
    for (int32_t i = 0; i < n; i++)
        take_result(&b->sample_results[i], &outcomes[i]);
    return n;
}

int cuda_sample(struct backend *b, const float *logits, const struct sample_job *jobs,
                int32_t num_jobs, struct sample_outcome *outcomes, struct error *error) {
    (void)error;
    CUDA_CHECK(cudaSetDevice(b->device));
    for (int32_t done = 0; done < num_jobs;)
        done += sample_some(b, logits, jobs + done, num_jobs - done, outcomes + done);
    return 0;
}
