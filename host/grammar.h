/* grammar: which JSON documents a request may answer with, compiled from a JSON schema.
 *
 * A grammar is an automaton over the bytes of UTF-8 text with a stack: states, edges on ranges of
 * bytes, and calls of rules, for what refers to itself or occurs often. It is immutable and counted
 * (any thread); grammar_match.h walks it and says which tokens may come next.
 *
 * Every document of the language validates against the schema. The reverse does not hold: a model
 * needs one good way to write a value, and what cannot end is left out:
 *
 *   space      none but one blank after a ':' or ','
 *   objects    declared properties in their order, then additional ones. Where `properties` stands
 *              without `additionalProperties`, there are no additional ones
 *   numbers    integers of at most 18 digits; numbers with 17 more behind the point and an exponent
 *              of two digits, but those with bounds have 15 digits and no exponent
 *   strings    any escapes, but no lone surrogates and no U+0000; with a pattern or a format, and
 *              in keys, only the escapes that must be. maxLength means at most 4,096 characters,
 *              with a format 128; e-mail addresses and host names have at most 63
 *   arrays     maxItems means at most 4,096 elements
 *   nesting    at most 128 calls deep
 *   oneOf      objects that a property tells apart have it, required or not
 *   no `type`  where other keywords speak of one type only, that type
 *
 * Supported are type, enum, const, properties, required, additionalProperties, propertyNames (a
 * list of them), items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format
 * (date, time, date-time, duration, uuid, email, hostname, uri, ipv4, ipv6; others are
 * annotations), minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf (up to 256, and
 * then integers), anyOf, oneOf (where the branches provably exclude each other), allOf (where the
 * parts can be merged), $ref within the document, and true and false. Annotations and names that no
 * JSON schema knows are skipped. Everything else that changes what validates is refused, with the
 * place.
 *
 * Patterns are ECMA 262's without assertions but ^ and $ around a whole alternative, references
 * and \p; \d, \w and \s are ASCII, and so are their complements.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "host/error.h"
#include "host/json.h"

#ifdef __cplusplus
extern "C" {
#endif

struct grammar; /* opaque */

/* Compiles a schema (borrowed, not changed), in bounded time and memory (about 50 ms and 20 MB at
 * the worst). ERR_INVALID_REQUEST names the place, "#/properties/age: not is not supported";
 * ERR_OVERLOADED: all grammars together take too much memory. The caller owns one reference. */
int grammar_create_json_schema(json_t *schema, struct grammar **out, struct error *error);
/* Any JSON object. */
int grammar_create_json_object(struct grammar **out, struct error *error);

struct grammar *grammar_retain(struct grammar *g); /* returns g; NULL is fine */
void grammar_release(struct grammar *g);           /* NULL is fine */

#ifdef __cplusplus
}
#endif
