/* grammar_internal: the automaton of a grammar and the parts that build it; for grammar*.c and
 * their tests only.
 *
 *   grammar_schema.c    JSON schema -> states and edges, through
 *   grammar_work.c        the bound of what that costs
 *   grammar_object.c      objects and arrays
 *   grammar_branches.c    anyOf, oneOf
 *   grammar_values.c      enum and const beside other keywords
 *   grammar_merge.c       allOf, $ref: several schemas -> one
 *   grammar_number.c      bounds of numbers -> digits
 *   grammar_format.c      formats of strings -> regular expressions
 *   grammar_pattern.c     regular expressions -> a deterministic automaton over code points
 *   grammar_text.c        that -> the bytes of JSON strings
 *   grammar_build.c     states and edges -> a struct grammar
 *
 * All functions that add to a builder go on harmlessly once it is full; the compiler asks at its
 * end.
 */
#pragma once

#include <stdatomic.h>

#include "host/buffer.h"
#include "host/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    GRAMMAR_MAX_STATES = 1 << 15,
    GRAMMAR_MAX_EDGES = 1 << 17,
    GRAMMAR_MAX_RULES = 2048,    /* of schemas that are referred to */
    GRAMMAR_MAX_PLACES = 8192,   /* that are followed at once */
    GRAMMAR_MAX_DEPTH = 128,     /* calls under way */
    GRAMMAR_MAX_MULTIPLE = 256,  /* for multipleOf */
    GRAMMAR_MAX_REPEATS = 4096,  /* of characters and elements that are counted */
    GRAMMAR_MAX_NESTING = 64,    /* of schemas in each other */
    GRAMMAR_MAX_SCHEMAS = 20000, /* that one compilation visits, however it comes by them */
    GRAMMAR_ALIKE_CHARS = 24,    /* for which states that are called alike behave alike */
};

#define GRAMMAR_FULL_TEXT                                                                          \
    "the schema makes an automaton of more than %d states, %d edges or %d rules; lower lengths "   \
    "and counts, or make it smaller"
#define GRAMMAR_FULL_LIMITS GRAMMAR_MAX_STATES, GRAMMAR_MAX_EDGES, GRAMMAR_MAX_RULES

/* ---- the automaton ---- */

enum edge_kind { EDGE_BYTES, EDGE_EMPTY, EDGE_CALL };

struct grammar_edge {
    int32_t target; /* CALL: where the rule returns to */
    int32_t rule;   /* CALL */
    uint16_t kind;
    uint8_t low, high; /* BYTES */
};

struct grammar {
    atomic_int refs;
    int32_t num_states, num_edges, num_rules, num_classes;
    int32_t *first_edge; /* [num_states + 1], owned, as all below */
    struct grammar_edge *edges;
    bool *ends;      /* [num_states] does its rule end here? */
    int32_t *alike;  /* [num_states] within strings: the first of the states that behave as this one
                        does for GRAMMAR_ALIKE_CHARS characters and what follows them, itself where
                        it is the first; -1: there is no other */
    int32_t *height; /* [num_states] calls that the way to an end nests at most, on the best way;
                        more than GRAMMAR_MAX_DEPTH: there is none */
    int32_t *start;  /* [num_rules] first state; rule 0 is the document */
    uint8_t class_of[256]; /* bytes that all edges treat alike have one class */
    uint64_t hash;         /* of all that */
};

/* Have both the same automaton? */
bool grammar_equal(const struct grammar *a, const struct grammar *b);

/* ---- builder (grammar_build.c) ---- */

struct build_edge {
    int32_t from;
    struct grammar_edge edge;
};

struct builder {
    struct build_edge *edges; /* owned */
    bool *ends;               /* [num_states], owned */
    int32_t *alike;           /* [num_states], owned; as in struct grammar */
    int32_t *start;           /* [num_rules], owned */
    int32_t num_states, num_edges, num_rules;
    int32_t max_states, max_edges, max_rules; /* room */
    bool full;
    const char *nothing; /* a reason why there may be no document; NULL: none is known; borrowed */
};

void builder_deinit(struct builder *b);
int32_t add_state(struct builder *b);
void add_bytes(struct builder *b, int32_t from, uint8_t low, uint8_t high, int32_t to);
void add_empty(struct builder *b, int32_t from, int32_t to);
void add_call(struct builder *b, int32_t from, int32_t rule, int32_t to);
/* Returns the new state behind it. */
int32_t add_literal(struct builder *b, int32_t from, const char *bytes, size_t len);
int32_t add_char(struct builder *b, int32_t from, char c);
/* A char, and a blank or none behind it. */
int32_t add_char_blank(struct builder *b, int32_t from, char c);
/* A rule with a start state and nothing else. */
int32_t add_rule(struct builder *b);
void set_end(struct builder *b, int32_t state);

/* The grammar of all that was added. ERR_INVALID_REQUEST: it is too large, calls itself before any
 * byte, or has no document. */
int builder_finish(struct builder *b, struct grammar **out, struct error *error);

/* ---- characters (grammar_text.c) ---- */

struct cp_range {
    uint32_t low, high;
};

/* A set of code points that may be in a string: 1 to U+10FFFF without surrogates. */
struct cp_set {
    struct cp_range *ranges; /* owned; ascending and apart once normalised */
    int32_t num, max;
};

void cp_set_deinit(struct cp_set *s);
void cp_set_add(struct cp_set *s, uint32_t low, uint32_t high);
void cp_set_normalise(struct cp_set *s);
void cp_set_complement(struct cp_set *s); /* of a normalised one */

/* A deterministic automaton over code points; state 0 is its start. */
struct cp_edge {
    int32_t from, to;
    uint32_t low, high;
};
struct cp_dfa {
    struct cp_edge *edges; /* owned; by ascending `from` */
    bool *ends;            /* [num_states], owned */
    int32_t num_states, num_edges, max_states, max_edges;
};

void cp_dfa_deinit(struct cp_dfa *d);
int32_t cp_dfa_state(struct cp_dfa *d, bool ends);
void cp_dfa_edge(struct cp_dfa *d, int32_t from, uint32_t low, uint32_t high, int32_t to);
/* All strings. */
void cp_dfa_all(struct cp_dfa *d);
/* All strings but these (UTF-8). */
void cp_dfa_all_but(struct cp_dfa *d, const char *const *strings, size_t count);
/* Those of d with min to max characters (max -1: any number). False: too many states. */
bool cp_dfa_with_length(const struct cp_dfa *d, int32_t min, int32_t max, struct cp_dfa *out);
/* Those of both. `work` is what may still be done, and becomes less. False: that is too much. */
bool cp_dfa_both(const struct cp_dfa *a, const struct cp_dfa *b, int64_t *work, struct cp_dfa *out);
/* Of each state the first one that accepts the same among strings of up to `chars` characters; -1
 * where there is no other, and everywhere in an automaton that is small or would take long.
 * [num_states], the caller's. */
int32_t *cp_dfa_alike(const struct cp_dfa *d, int32_t chars);

/* Classes of characters that have a rule already. */
struct char_rules {
    struct char_rule {
        struct cp_set set; /* owned */
        int32_t rule;
    } * rules; /* owned */
    int32_t num, max;
    int32_t any_rule; /* any character that is not one plain ASCII byte; -1: none yet */
};

void char_rules_deinit(struct char_rules *r);

/* A JSON string, quotes included, whose text is in d. Returns the state behind it. */
int32_t add_string(struct builder *b, struct char_rules *rules, int32_t from,
                   const struct cp_dfa *d);
/* Any JSON string, without a call. */
int32_t add_any_string(struct builder *b, int32_t from);

/* ---- regular expressions (grammar_pattern.c) ---- */

/* The strings in which the pattern occurs. `work` is what may still be done, and becomes less.
 * ERR_INVALID_REQUEST with what is wrong, or not supported. */
int pattern_compile(const char *pattern, size_t len, int64_t *work, struct cp_dfa *out,
                    struct error *error);

/* The pattern of a format; NULL: it is an annotation. Static. */
const char *format_pattern(const char *name);
/* How many characters such a string has at most, of its minLength and maxLength (INT32_MAX: there
 * is none). Less than minLength where the format allows no more. */
int32_t format_max_length(const char *name, int32_t min, int32_t max);

/* ---- numbers (grammar_number.c) ---- */

struct number_bounds {
    bool has_min, has_max, min_exclusive, max_exclusive;
    double min, max;     /* of numbers */
    int64_t low, high;   /* of integers, both inclusive */
    int32_t multiple_of; /* integers; 0 and 1: any */
};

/* Why there is no number. */
enum {
    NUMBER_NONE = -1,     /* the bounds leave none */
    NUMBER_TOO_LONG = -2, /* a bound has more digits than are supported */
};

int32_t add_any_integer(struct builder *b, int32_t from);
int32_t add_any_number(struct builder *b, int32_t from);
/* Within bounds; NUMBER_NONE or NUMBER_TOO_LONG. */
int32_t add_integer(struct builder *b, int32_t from, const struct number_bounds *bounds);
int32_t add_number(struct builder *b, int32_t from, const struct number_bounds *bounds);

/* ---- the compiler (grammar_schema.c) ---- */

/* Where in the document a schema stands. */
struct place {
    const struct place *up; /* NULL: at `root` */
    const char *root;       /* "#", "#/$defs/a" */
    const char *key;        /* NULL: an index */
    size_t index;
    int32_t depth;
};

struct pending {
    json_t *schema; /* borrowed */
    char *path;     /* owned */
    int32_t rule;
};

/* Strings and numbers with the same constraints are one rule, and so are long lists with the same
 * values. */
struct shared_rule {
    char *key; /* owned: the constraints or values as text */
    int32_t rule;
};

enum { MAX_SHARED_RULES = 256 };

/* A list of branches, and what was made of it; both borrowed. */
struct tagged_list {
    json_t *list, *made;
};

struct compiler {
    struct builder b;
    struct char_rules chars;
    json_t *document;      /* borrowed: what $ref refers to */
    json_t *made;          /* array that owns the schemas that were merged */
    struct pending *rules; /* owned; rules by schema, the first num_done compiled */
    int32_t num_rules, max_rules, num_done;
    int32_t any_rule; /* any JSON value; -1: none yet */
    struct shared_rule shared[MAX_SHARED_RULES];
    int32_t num_shared;
    struct tagged_list *tagged; /* owned; with a property required */
    int32_t num_tagged;
    struct tagged_list *flat; /* owned; without $ref and allOf on top */
    int32_t num_flat;
    int32_t visited;      /* schemas */
    int64_t pattern_work; /* that is left */
    int64_t work;         /* done, in the units of grammar_work.c */
    struct error *error;
    struct error nothing; /* the first place where no value fits, which need not be reached */
};

enum json_kind {
    KIND_NULL = 1,
    KIND_BOOLEAN = 2,
    KIND_INTEGER = 4,
    KIND_NUMBER = 8, /* with integers */
    KIND_STRING = 16,
    KIND_OBJECT = 32,
    KIND_ARRAY = 64,
    KIND_ALL = 127 & ~KIND_INTEGER,
};

/* Sets the error unless there is one; returns -1. */
int32_t compile_error(struct compiler *c, const struct place *at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Notes that no value fits here. That is an error only where the document needs one. */
void nothing_fits(struct compiler *c, const struct place *at, const char *why);
/* A place under another, by key or, where that is NULL, by index. */
struct place place_in(const struct place *up, const char *key, size_t index);
/* A value of the schema. Returns the state behind it, -1 after an error. */
int32_t compile_schema(struct compiler *c, json_t *schema, const struct place *at, int32_t from);
/* The rule of a schema, which is compiled later if it was not yet. */
int32_t rule_of_schema(struct compiler *c, json_t *schema, const struct place *at);
int32_t compile_any(struct compiler *c, int32_t from);
/* Any JSON string, whose escapes all strings share. */
int32_t add_free_string(struct compiler *c, int32_t from);
int32_t compile_object(struct compiler *c, json_t *schema, const struct place *at, int32_t from);
int32_t compile_array(struct compiler *c, json_t *schema, const struct place *at, int32_t from);
/* Of a schema with anyOf or oneOf, as `key` says. Branches that only list values become one, whose
 * texts share their beginnings. */
int32_t compile_branches(struct compiler *c, json_t *schema, const char *key,
                         const struct place *at, int32_t from);
/* A count that must be a whole number >= 0; `otherwise` when it is not there. -1: an error. */
int32_t read_count(struct compiler *c, json_t *schema, const char *key, int32_t otherwise,
                   const struct place *at);
/* The kinds that a schema asks for with `type`; 0 after an error. */
unsigned schema_kinds(struct compiler *c, json_t *schema, const struct place *at);
unsigned kind_of_value(json_t *value);
/* The kinds that a keyword speaks of. */
unsigned keyword_kind(const char *keyword);
/* Is a value one of these kinds? */
bool kinds_hold(unsigned kinds, json_t *value);
/* Takes out of an array of values those that another keyword than type, enum and const forbids.
 * False after an error. */
bool filter_values(struct compiler *c, json_t *schema, json_t *values, const struct place *at);
/* The values of a branch of anyOf that says nothing else than them and their type, as an array to
 * be released. NULL: it says more, or allows none. */
json_t *values_of_branch(struct compiler *c, json_t *branch, const struct place *at);
/* Can a JSON value name a property? JSON_ALLOW_NUL lets through strings that none can have. */
bool is_name(json_t *value);
/* Checks the names of a schema's keywords. */
bool check_keywords(struct compiler *c, json_t *schema, const struct place *at);
/* Does a schema say anything beside annotations and one keyword (NULL: none)? */
bool has_constraints(json_t *schema, const char *but);
bool is_constraint(const char *keyword);
/* The constraints of a schema, without its annotations; a new reference. */
json_t *copy_constraints(json_t *schema);

/* ---- what it costs (grammar_work.c) ---- */

/* Charges work, of a text and of a value to be looked through. False after an error, when there was
 * too much. */
bool spend_work(struct compiler *c, int64_t work, const struct place *at);
bool spend_text(struct compiler *c, size_t bytes, const struct place *at);
bool spend_value(struct compiler *c, json_t *value, const struct place *at);
/* Equal as JSON schema has it: 1 and 1.0 are. Charged; false after an error. */
bool same_value(struct compiler *c, json_t *a, json_t *b, const struct place *at);

/* ---- several schemas as one (grammar_merge.c) ---- */

/* What a $ref refers to; NULL after an error. */
json_t *resolve_ref(struct compiler *c, const char *ref, const struct place *at);
/* A schema without $ref and allOf on top that says the same; borrowed. NULL after an error. Here
 * and below, false where the parts exclude each other. */
json_t *flatten_schema(struct compiler *c, json_t *schema, const struct place *at);
/* Less than, equal to or more than 0, as a is to b: whole numbers exactly, where both are. */
int compare_numbers(json_t *a, json_t *b);
/* A schema for what validates against both; borrowed. NULL after an error. */
json_t *merge_schemas(struct compiler *c, json_t *a, json_t *b, const struct place *at);
/* Can no value validate against both? Says so only when it is certain. */
bool schemas_exclude(struct compiler *c, json_t *a, json_t *b, const struct place *at,
                     int32_t depth);

/* The branches of oneOf with a property required whose values tell them apart, as an array;
 * borrowed, and the same one each time. NULL: there is no such property, or an error. */
json_t *require_tag(struct compiler *c, json_t *list, const struct place *at);

#ifdef __cplusplus
}
#endif
