/* ptx: the text of a PTX module as structures.
 *
 * ptx_lex.c cuts the text into tokens, ptx_parse.c reads the directives (variables, functions,
 * files), ptx_body.c the statements of a function. Nothing here knows what an instruction does:
 * an opcode is text, its operands are registers, numbers and names. decode.c gives them meaning.
 *
 * Names are slices of the module's text, which the module keeps; everything else is allocated from
 * the module's arena and freed with it. Of the many kernels of a module a process launches a few,
 * so the body of a kernel is left until it is asked for.
 */
#pragma once

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- arena and text -------------------------------------------------------------------------- */

struct ptx_arena {
    struct ptx_chunk *chunks;
};
void *ptx_alloc(struct ptx_arena *a, size_t bytes); /* zeroed */
void ptx_arena_free(struct ptx_arena *a);

struct ptx_text {
    const char *s;
    int32_t len;
};
bool ptx_text_is(struct ptx_text t, const char *s);
bool ptx_text_same(struct ptx_text a, struct ptx_text b);
char *ptx_text_copy(struct ptx_arena *a, struct ptx_text t);

/* Makes room for one more element of a growing array that lives in malloc memory. */
void *ptx_grow(void *array, int32_t count, int32_t *capacity, size_t element_bytes);

/* ---- tokens ---------------------------------------------------------------------------------- */

enum ptx_token_kind {
    PTX_END,
    PTX_NAME,
    PTX_DIRECTIVE,
    PTX_NUMBER,
    PTX_REAL,
    PTX_STRING,
    PTX_PUNCT
};

struct ptx_token {
    enum ptx_token_kind kind;
    struct ptx_text text; /* of a directive: with its dot */
    int32_t line;
    char punct;
    uint64_t number; /* PTX_NUMBER */
    uint64_t real;   /* PTX_REAL: bits of a float (single) or a double */
    bool single;
};

struct ptx_lexer {
    const char *at, *end;
    int32_t line;
    struct ptx_token token; /* the current one */
    char *error;
    size_t error_bytes;
    jmp_buf *fail; /* where ptx_fail goes */
};
void ptx_next(struct ptx_lexer *lx);
/* Opcodes keep their dots (ld.global.v4.u32) and may contain "::"; other names end at a dot that
 * is not part of a special register such as %tid.x. */
bool ptx_accept(struct ptx_lexer *lx, char punct);
void ptx_expect(struct ptx_lexer *lx, char punct);
/* Goes behind the brace that closes the current one, without looking at what is between. */
void ptx_skip_body(struct ptx_lexer *lx);
/* Ends the parse with "line N: message". */
_Noreturn void ptx_fail(struct ptx_lexer *lx, int32_t line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- the module ------------------------------------------------------------------------------ */

enum ptx_space { PTX_GENERIC, PTX_GLOBAL, PTX_CONST, PTX_SHARED, PTX_LOCAL, PTX_PARAM };

struct ptx_relocation { /* an initialiser that is the address of a variable */
    int64_t offset;
    struct ptx_text name;
    int64_t addend;
};

struct ptx_variable {
    struct ptx_text name;
    enum ptx_space space;
    int32_t align, scope;
    int64_t bytes;
    bool external; /* extern .shared name[]: the dynamic part */
    uint8_t *init; /* [bytes], NULL: zero */
    struct ptx_relocation *relocations;
    int32_t num_relocations;
    bool is_parameter; /* of a kernel or function, as opposed to an argument built for a call */
};

enum ptx_operand_kind {
    PTX_OP_REGISTER, /* index */
    PTX_OP_SPECIAL,  /* text: %tid.x */
    PTX_OP_INT,      /* value */
    PTX_OP_REAL,     /* real, single */
    PTX_OP_NAME,     /* text: label or function; var when it names a variable; + value */
    PTX_OP_ADDRESS,  /* [base + value]; base: index, var, or neither */
    PTX_OP_LIST,     /* {..} or (..): items */
    PTX_OP_SINK      /* _ */
};

struct ptx_operand {
    enum ptx_operand_kind kind;
    bool negated;   /* !%p */
    int32_t index;  /* register, -1: none */
    int32_t second; /* register after '|', -1: none */
    int64_t value;
    uint64_t real;
    bool single;
    struct ptx_text text;
    const struct ptx_variable *var;
    struct ptx_operand *items;
    int32_t num_items;
};

enum { PTX_MAX_OPERANDS = 10 };

struct ptx_instruction {
    struct ptx_text op;
    struct ptx_text text; /* the whole statement, for reports */
    struct ptx_operand *operands;
    int32_t num_operands;
    int32_t guard; /* predicate register, -1: none */
    bool guard_not;
    int32_t line, scope;
    const struct ptx_location *loc; /* NULL: not known */
};

struct ptx_label {
    struct ptx_text name;
    int32_t scope, target; /* index of the instruction that follows */
    /* .branchtargets: the list */
    struct ptx_text *targets;
    int32_t num_targets;
};

struct ptx_location {
    int32_t file, line, column;
    const struct ptx_location *parent;   /* where it was inlined; NULL: nowhere */
    const struct ptx_location *previous; /* in its bucket */
};

/* Registers: bytes of each; 0 is a predicate. */
struct ptx_register_range {
    struct ptx_text name; /* "%r" of %r<10>, or a whole name (count 0) */
    int32_t first, count, scope;
};

struct ptx_function {
    struct ptx_text name;
    bool is_entry, has_body, is_parsed, is_broken;
    struct ptx_lexer body; /* at its first brace */
    int32_t max_threads;   /* product of .maxntid, 0: not given */
    uint8_t *register_bytes;
    int32_t num_registers, cap_registers;
    struct ptx_register_range *ranges;
    int32_t num_ranges, cap_ranges;
    struct ptx_variable **vars;
    int32_t num_vars, cap_vars;
    struct ptx_variable **params, **results;
    int32_t num_params, cap_params, num_results, cap_results;
    struct ptx_instruction *code;
    int32_t num_code, cap_code;
    struct ptx_label *labels;
    int32_t num_labels, cap_labels;
    int32_t *scope_parent;
    int32_t num_scopes, cap_scopes;
};

struct ptx_module {
    struct ptx_arena arena;
    char *text;
    char **files; /* by number of .file; NULL: none */
    int32_t num_files, cap_files;
    struct ptx_variable **vars; /* .global, .const, .shared of the module */
    int32_t num_vars, cap_vars;
    struct ptx_function **functions;
    int32_t num_functions, cap_functions;
};

/* Reads all but the bodies of kernels. NULL with the reason in error. */
struct ptx_module *ptx_parse(const char *text, size_t len, char *error, size_t error_bytes);
/* Reads the body of a kernel, unless that has been done. false with the reason in error. Not from
 * two threads at once for functions of one module. */
bool ptx_parse_kernel(struct ptx_module *m, struct ptx_function *f, char *error,
                      size_t error_bytes);
void ptx_module_free(struct ptx_module *m);
struct ptx_function *ptx_find_function(const struct ptx_module *m, struct ptx_text name);
/* The instruction that a label stands for, seen from a scope; -1: none. */
const struct ptx_label *ptx_find_label(const struct ptx_function *f, struct ptx_text name,
                                       int32_t scope);

/* ---- between ptx_parse.c and ptx_body.c ------------------------------------------------------ */

enum { PTX_LOCATION_BUCKETS = 256 };
struct ptx_parser {
    struct ptx_lexer lx;
    struct ptx_module *m;
    struct ptx_function *f;
    int32_t scope;
    const struct ptx_location *loc;                           /* the last one */
    const struct ptx_location *buckets[PTX_LOCATION_BUCKETS]; /* of the function, by place */
};
/* Bytes of a type such as ".b32"; 0 is .pred, -1 not a type. */
int32_t ptx_type_bytes(struct ptx_text type);
/* Reads ".align 4 .b8 name[12] = {..}" after its space directive. One or more, up to ';'. */
void ptx_parse_variables(struct ptx_parser *p, enum ptx_space space, bool external);
struct ptx_variable *ptx_parse_variable(struct ptx_parser *p, enum ptx_space space);
void ptx_parse_location(struct ptx_parser *p);
void ptx_parse_body(struct ptx_parser *p);
struct ptx_variable *ptx_find_variable(const struct ptx_parser *p, struct ptx_text name);
void ptx_add_variable(struct ptx_parser *p, struct ptx_variable *v);
