/* grammar_fixture: grammars from schemas in C strings, walked byte by byte. */
#pragma once

#include "host/grammar.h"
#include "host/grammar_match.h"

/* Schemas are written with ' for ". Records a failure and returns NULL when it does not compile. */
struct grammar *grammar_from(const char *schema);
/* The message with which a schema is refused; "" when it is not. Static. */
const char *grammar_refusal(const char *schema);

/* A pool whose vocabulary is the 256 bytes: token = byte. */
struct grammar_pool *byte_pool(void);

/* How many bytes of a document the matcher at the start of a grammar takes; -1: all of them, and
 * the document may end there. */
int64_t grammar_take(struct grammar_pool *p, struct grammar *g, const char *text, size_t len);
