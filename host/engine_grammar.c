/* engine_grammar: requests whose answers a grammar constrains.
 *
 * The mask of a request's next token is made when the token before it was handed out, between
 * steps, so that nothing is allocated within one. A matcher moves only when a token is handed out:
 * a request that is preempted and computed again from its tokens keeps it as it is.
 */
#include "host/engine_internal.h"
#include "host/log.h"
#include "host/mem.h"

/* Allows the tokens that end the text. */
static void allow_eos(const struct engine *e, uint32_t *mask) {
    for (int32_t i = 0; i < e->num_eos_ids; i++)
        mask[e->eos_ids[i] / 32] |= 1u << (e->eos_ids[i] % 32);
}

enum grammar_outlook engine_follow_grammar(struct engine *e, struct request *r, int32_t token) {
    if (token >= 0 && !grammar_matcher_advance_token(r->matcher, token)) {
        log_error("request %llu: token %d was drawn, which its grammar forbids",
                  (unsigned long long)r->handle, token);
        return GRAMMAR_STUCK;
    }
    bool can_end = grammar_matcher_can_end(r->matcher);
    int32_t count = grammar_matcher_mask(r->matcher, r->mask);
    if (count < 0)
        return GRAMMAR_COSTLY;
    if (count == 0)
        return can_end ? GRAMMAR_AT_END : GRAMMAR_STUCK;
    if (can_end && !r->params.ignore_eos)
        allow_eos(e, r->mask);
    return GRAMMAR_GOES_ON;
}

void engine_fail_grammar(struct engine *e, struct request *r, enum grammar_outlook outlook) {
    if (outlook == GRAMMAR_COSTLY)
        engine_fail_request(e, r, ERR_INVALID_REQUEST,
                            "the JSON schema takes too much work to find the next token: it keeps "
                            "too many alternatives open at once; use fewer branches of anyOf, or "
                            "simpler patterns in them");
    else
        engine_fail_request(e, r, ERR_INTERNAL,
                            sequence_num_generated(&r->seq) > 0
                                ? "the vocabulary has no token that continues the document"
                                : "the vocabulary has no token that begins a document");
}

void engine_constrain(struct engine *e, struct request *r) {
    r->mask = xmalloc(grammar_mask_words(e->model.vocab_size) * sizeof *r->mask);
    r->matcher = grammar_matcher_create(e->grammars, r->params.grammar);
    enum grammar_outlook outlook = engine_follow_grammar(e, r, -1);
    if (outlook != GRAMMAR_GOES_ON)
        engine_fail_grammar(e, r, outlook);
}
