/* The directives of a PTX module: variables with their initialisers, functions with their
 * parameters, files and locations. Debug sections are skipped. */
#include "tests/ptxvm/ptx.h"

#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

int32_t ptx_type_bytes(struct ptx_text t) {
    static const struct {
        const char *name;
        int32_t bytes;
    } types[] = {{".pred", 0}, {".b8", 1},  {".u8", 1},  {".s8", 1},    {".b16", 2},
                 {".u16", 2},  {".s16", 2}, {".f16", 2}, {".bf16", 2},  {".b32", 4},
                 {".u32", 4},  {".s32", 4}, {".f32", 4}, {".f16x2", 4}, {".bf16x2", 4},
                 {".b64", 8},  {".u64", 8}, {".s64", 8}, {".f64", 8},   {".b128", 16}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (ptx_text_is(t, types[i].name))
            return types[i].bytes;
    return -1;
}

static struct ptx_token take(struct ptx_parser *p) {
    struct ptx_token t = p->lx.token;
    ptx_next(&p->lx);
    return t;
}

static bool directive(struct ptx_parser *p, const char *name) {
    return p->lx.token.kind == PTX_DIRECTIVE && ptx_text_is(p->lx.token.text, name);
}

static int64_t take_int(struct ptx_parser *p) {
    bool minus = ptx_accept(&p->lx, '-');
    if (p->lx.token.kind != PTX_NUMBER)
        ptx_fail(&p->lx, p->lx.token.line, "a number expected before '%.*s'", p->lx.token.text.len,
                 p->lx.token.text.s);
    int64_t v = (int64_t)take(p).number;
    return minus ? -v : v;
}

static struct ptx_text take_name(struct ptx_parser *p) {
    if (p->lx.token.kind != PTX_NAME)
        ptx_fail(&p->lx, p->lx.token.line, "a name expected before '%.*s'", p->lx.token.text.len,
                 p->lx.token.text.s);
    return take(p).text;
}

struct ptx_variable *ptx_find_variable(const struct ptx_parser *p, struct ptx_text name) {
    if (p->f)
        for (int32_t scope = p->scope; scope >= 0; scope = p->f->scope_parent[scope])
            for (int32_t i = p->f->num_vars - 1; i >= 0; i--)
                if (p->f->vars[i]->scope == scope && ptx_text_same(p->f->vars[i]->name, name))
                    return p->f->vars[i];
    for (int32_t i = 0; i < p->m->num_vars; i++)
        if (ptx_text_same(p->m->vars[i]->name, name))
            return p->m->vars[i];
    return NULL;
}

void ptx_add_variable(struct ptx_parser *p, struct ptx_variable *v) {
    if (p->f) {
        struct ptx_function *f = p->f;
        v->scope = p->scope;
        f->vars = ptx_grow(f->vars, f->num_vars, &f->cap_vars, sizeof *f->vars);
        f->vars[f->num_vars++] = v;
    } else {
        struct ptx_module *m = p->m;
        m->vars = ptx_grow(m->vars, m->num_vars, &m->cap_vars, sizeof *m->vars);
        m->vars[m->num_vars++] = v;
    }
}

/* ---- initialisers ---------------------------------------------------------------------------- */

static void relocation(struct ptx_parser *p, struct ptx_variable *v, int64_t at,
                       struct ptx_text name) {
    struct ptx_relocation *all =
        ptx_alloc(&p->m->arena, (size_t)(v->num_relocations + 1) * sizeof *all);
    if (v->num_relocations)
        memcpy(all, v->relocations, (size_t)v->num_relocations * sizeof *all);
    int64_t addend = ptx_accept(&p->lx, '+') ? take_int(p) : 0;
    all[v->num_relocations++] = (struct ptx_relocation){at, name, addend};
    v->relocations = all;
}

static int64_t initialiser(struct ptx_parser *p, struct ptx_variable *v, int32_t element,
                           int64_t at) {
    if (ptx_accept(&p->lx, '{')) {
        while (!ptx_accept(&p->lx, '}')) {
            at = initialiser(p, v, element, at);
            ptx_accept(&p->lx, ',');
        }
        return at;
    }
    if (at + element > v->bytes)
        ptx_fail(&p->lx, p->lx.token.line, "%.*s has more initialisers than %lld bytes",
                 v->name.len, v->name.s, (long long)v->bytes);
    bool minus = ptx_accept(&p->lx, '-');
    struct ptx_token t = take(p);
    uint64_t bits = minus ? 0 - t.number : t.number;
    if (t.kind == PTX_REAL) {
        bits = t.real;
        if (minus)
            bits ^= t.single ? 0x80000000u : 1ull << 63;
    } else if (t.kind == PTX_NAME && ptx_text_is(t.text, "generic")) {
        ptx_expect(&p->lx, '(');
        relocation(p, v, at, take_name(p));
        ptx_expect(&p->lx, ')');
    } else if (t.kind == PTX_NAME) {
        relocation(p, v, at, t.text);
    } else if (t.kind != PTX_NUMBER) {
        ptx_fail(&p->lx, t.line, "'%.*s' cannot initialise a variable", t.text.len, t.text.s);
    }
    memcpy(v->init + at, &bits, (size_t)element);
    return at + element;
}

/* ---- variables ------------------------------------------------------------------------------- */

struct ptx_variable *ptx_parse_variable(struct ptx_parser *p, enum ptx_space space) {
    struct ptx_variable *v = ptx_alloc(&p->m->arena, sizeof *v);
    int32_t element = -1, vector = 1;
    v->space = space;
    while (p->lx.token.kind == PTX_DIRECTIVE) {
        struct ptx_text d = take(p).text;
        if (ptx_text_is(d, ".align"))
            v->align = (int32_t)take_int(p);
        else if (ptx_text_is(d, ".v2") || ptx_text_is(d, ".v4"))
            vector = d.s[2] - '0';
        else if (ptx_type_bytes(d) > 0)
            element = ptx_type_bytes(d);
        /* What remains says more about a pointer (.ptr .global) or linkage: no layout in it. */
    }
    v->name = take_name(p);
    if (element < 0)
        ptx_fail(&p->lx, p->lx.token.line, "variable %.*s has no type", v->name.len, v->name.s);
    if (!v->align)
        v->align = element * vector;
    v->bytes = (int64_t)element * vector;
    while (ptx_accept(&p->lx, '[')) {
        if (ptx_accept(&p->lx, ']')) {
            v->bytes = 0;
        } else {
            v->bytes *= take_int(p);
            ptx_expect(&p->lx, ']');
        }
    }
    if (ptx_accept(&p->lx, '=')) {
        v->init = ptx_alloc(&p->m->arena, (size_t)v->bytes + 8);
        initialiser(p, v, element, 0);
    }
    return v;
}

void ptx_parse_variables(struct ptx_parser *p, enum ptx_space space, bool external) {
    struct ptx_variable *v = ptx_parse_variable(p, space);
    v->external = external || (space == PTX_SHARED && !v->bytes);
    ptx_add_variable(p, v);
    ptx_expect(&p->lx, ';');
}

/* ---- functions ------------------------------------------------------------------------------- */

static void parameter_list(struct ptx_parser *p, struct ptx_variable ***list, int32_t *count,
                           int32_t *cap) {
    ptx_expect(&p->lx, '(');
    while (!ptx_accept(&p->lx, ')')) {
        if (!directive(p, ".param"))
            ptx_fail(&p->lx, p->lx.token.line, "only .param parameters are supported, not '%.*s'",
                     p->lx.token.text.len, p->lx.token.text.s);
        ptx_next(&p->lx);
        struct ptx_variable *v = ptx_parse_variable(p, PTX_PARAM);
        v->is_parameter = true;
        ptx_add_variable(p, v);
        *list = ptx_grow(*list, *count, cap, sizeof **list);
        (*list)[(*count)++] = v;
        ptx_accept(&p->lx, ',');
    }
}

static void launch_bounds(struct ptx_parser *p) {
    while (p->lx.token.kind == PTX_DIRECTIVE) {
        struct ptx_text d = take(p).text;
        int64_t product = 1;
        while (p->lx.token.kind == PTX_NUMBER) {
            product *= take_int(p);
            ptx_accept(&p->lx, ',');
        }
        if (ptx_text_is(d, ".maxntid") || ptx_text_is(d, ".reqntid"))
            p->f->max_threads = (int32_t)product;
        else if (ptx_text_is(d, ".pragma"))
            while (!ptx_accept(&p->lx, ';'))
                ptx_next(&p->lx);
    }
}

static void open_scope(struct ptx_function *f) {
    f->scope_parent =
        ptx_grow(f->scope_parent, f->num_scopes, &f->cap_scopes, sizeof *f->scope_parent);
    f->scope_parent[f->num_scopes++] = -1;
}

static void body(struct ptx_parser *p) {
    ptx_expect(&p->lx, '{');
    ptx_parse_body(p);
}

static void function(struct ptx_parser *p, bool is_entry) {
    struct ptx_module *m = p->m;
    struct ptx_function *f = p->f = ptx_alloc(&m->arena, sizeof *f);
    /* In the module from the start, so that a failed parse frees its arrays too. */
    m->functions =
        ptx_grow(m->functions, m->num_functions, &m->cap_functions, sizeof *m->functions);
    m->functions[m->num_functions++] = f;
    f->is_entry = is_entry;
    open_scope(f);
    p->scope = 0;
    p->loc = NULL;
    memset(p->buckets, 0, sizeof p->buckets);
    if (p->lx.token.kind == PTX_PUNCT && p->lx.token.punct == '(')
        parameter_list(p, &f->results, &f->num_results, &f->cap_results);
    f->name = take_name(p);
    if (p->lx.token.kind == PTX_PUNCT && p->lx.token.punct == '(')
        parameter_list(p, &f->params, &f->num_params, &f->cap_params);
    launch_bounds(p);
    if (!ptx_accept(&p->lx, ';')) {
        f->has_body = true;
        f->is_parsed = !is_entry;
        f->body = p->lx;
        if (p->lx.token.kind != PTX_PUNCT || p->lx.token.punct != '{')
            ptx_expect(&p->lx, '{');
        else if (is_entry)
            ptx_skip_body(&p->lx);
        else
            body(p);
    }
    p->f = NULL;
    p->scope = 0;
}

struct ptx_function *ptx_find_function(const struct ptx_module *m, struct ptx_text name) {
    struct ptx_function *found = NULL;
    for (int32_t i = 0; i < m->num_functions; i++)
        if (ptx_text_same(m->functions[i]->name, name) && (!found || !found->has_body))
            found = m->functions[i];
    return found;
}

/* ---- files, locations, sections -------------------------------------------------------------- */

static void file(struct ptx_parser *p) {
    struct ptx_module *m = p->m;
    int64_t number = take_int(p);
    struct ptx_token name = take(p);
    if (name.kind != PTX_STRING || number < 0 || number > 1 << 20)
        ptx_fail(&p->lx, name.line, ".file needs a number and a string");
    while (ptx_accept(&p->lx, ','))
        ptx_next(&p->lx);
    while (m->num_files <= number) {
        m->files = ptx_grow(m->files, m->num_files, &m->cap_files, sizeof *m->files);
        m->files[m->num_files++] = NULL;
    }
    m->files[number] = ptx_text_copy(&m->arena, name.text);
}

static const struct ptx_location **location_bucket(struct ptx_parser *p, int32_t file, int32_t line,
                                                   int32_t column) {
    uint32_t hash = (uint32_t)file * 31 + (uint32_t)line * 7 + (uint32_t)column;
    return &p->buckets[hash % PTX_LOCATION_BUCKETS];
}

/* .loc file line column[, function_name label[+n], inlined_at file line column] */
void ptx_parse_location(struct ptx_parser *p) {
    struct ptx_location loc = {0};
    loc.file = (int32_t)take_int(p);
    loc.line = (int32_t)take_int(p);
    loc.column = (int32_t)take_int(p);
    while (ptx_accept(&p->lx, ',')) {
        struct ptx_text what = take_name(p);
        if (ptx_text_is(what, "function_name")) {
            take_name(p);
            if (ptx_accept(&p->lx, '+'))
                take_int(p);
        } else if (ptx_text_is(what, "inlined_at")) {
            int32_t at_file = (int32_t)take_int(p), line = (int32_t)take_int(p);
            int32_t column = (int32_t)take_int(p);
            loc.parent = *location_bucket(p, at_file, line, column);
            while (loc.parent && (loc.parent->file != at_file || loc.parent->line != line ||
                                  loc.parent->column != column))
                loc.parent = loc.parent->previous;
        }
    }
    const struct ptx_location **bucket = location_bucket(p, loc.file, loc.line, loc.column);
    loc.previous = *bucket;
    struct ptx_location *l = ptx_alloc(&p->m->arena, sizeof *l);
    *l = loc;
    p->loc = *bucket = l;
}

static void skip_section(struct ptx_parser *p) {
    int depth = 0;
    while (p->lx.token.kind != PTX_END) {
        char c = p->lx.token.kind == PTX_PUNCT ? p->lx.token.punct : 0;
        depth += (c == '{') - (c == '}');
        ptx_next(&p->lx);
        if (c == '}' && depth <= 0)
            return;
    }
}

static void statement(struct ptx_parser *p) {
    struct ptx_token t = take(p);
    bool external = false;
    if (t.kind == PTX_DIRECTIVE &&
        (ptx_text_is(t.text, ".version") || ptx_text_is(t.text, ".target") ||
         ptx_text_is(t.text, ".address_size"))) {
        /* .version 9.0 and .address_size 64 end with a number; .target has a list of names. */
        do
            ptx_next(&p->lx);
        while (ptx_accept(&p->lx, ','));
        return;
    }
    while (t.kind == PTX_DIRECTIVE &&
           (ptx_text_is(t.text, ".visible") || ptx_text_is(t.text, ".weak") ||
            ptx_text_is(t.text, ".extern") || ptx_text_is(t.text, ".common"))) {
        external |= ptx_text_is(t.text, ".extern");
        t = take(p);
    }
    if (ptx_text_is(t.text, ".file"))
        file(p);
    else if (ptx_text_is(t.text, ".section"))
        skip_section(p);
    else if (ptx_text_is(t.text, ".global"))
        ptx_parse_variables(p, PTX_GLOBAL, external);
    else if (ptx_text_is(t.text, ".const"))
        ptx_parse_variables(p, PTX_CONST, external);
    else if (ptx_text_is(t.text, ".shared"))
        ptx_parse_variables(p, PTX_SHARED, external);
    else if (ptx_text_is(t.text, ".entry"))
        function(p, true);
    else if (ptx_text_is(t.text, ".func"))
        function(p, false);
    else if (ptx_text_is(t.text, ".pragma") || ptx_text_is(t.text, ".alias"))
        while (!ptx_accept(&p->lx, ';'))
            ptx_next(&p->lx);
    else if (t.kind != PTX_PUNCT || t.punct != ';')
        ptx_fail(&p->lx, t.line, "unknown directive '%.*s'", t.text.len, t.text.s);
}

/* false when ptx_fail was called. */
static bool statements(struct ptx_parser *p) {
    jmp_buf fail;
    p->lx.fail = &fail;
    if (setjmp(fail))
        return false;
    ptx_next(&p->lx);
    while (p->lx.token.kind != PTX_END)
        statement(p);
    return true;
}

struct ptx_module *ptx_parse(const char *text, size_t len, char *error, size_t error_bytes) {
    struct ptx_module *m = rt_calloc(sizeof *m);
    m->text = rt_calloc(len + 1);
    memcpy(m->text, text, len);
    m->text[len] = 0;
    struct ptx_parser p = {.m = m};
    p.lx = (struct ptx_lexer){
        .at = m->text, .end = m->text + len, .line = 1, .error = error, .error_bytes = error_bytes};
    if (!statements(&p)) {
        ptx_module_free(m);
        return NULL;
    }
    return m;
}

bool ptx_parse_kernel(struct ptx_module *m, struct ptx_function *f, char *error,
                      size_t error_bytes) {
    struct ptx_parser p = {.m = m, .f = f, .lx = f->body};
    jmp_buf fail;
    if (f->is_parsed || !f->has_body)
        return true;
    p.lx.error = error;
    p.lx.error_bytes = error_bytes;
    p.lx.fail = &fail;
    if (f->is_broken)
        snprintf(error, error_bytes, "%.*s could not be read before", f->name.len, f->name.s);
    if (f->is_broken || setjmp(fail)) {
        f->is_broken = true;
        return false;
    }
    body(&p);
    f->is_parsed = true;
    return true;
}

void ptx_module_free(struct ptx_module *m) {
    if (!m)
        return;
    for (int32_t i = 0; i < m->num_functions; i++) {
        struct ptx_function *f = m->functions[i];
        rt_free(f->register_bytes);
        rt_free(f->ranges);
        rt_free(f->vars);
        rt_free(f->params);
        rt_free(f->results);
        rt_free(f->code);
        rt_free(f->labels);
        rt_free(f->scope_parent);
    }
    rt_free(m->functions);
    rt_free(m->vars);
    rt_free(m->files);
    rt_free(m->text);
    ptx_arena_free(&m->arena);
    rt_free(m);
}
