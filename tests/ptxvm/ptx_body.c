/* The statements of a PTX function: register and variable declarations, labels, instructions. */
#include "tests/ptxvm/ptx.h"

#include <ctype.h>
#include <string.h>

/* ---- registers ------------------------------------------------------------------------------- */

static int32_t add_registers(struct ptx_function *f, int32_t count, int32_t bytes) {
    int32_t first = f->num_registers;
    for (int32_t i = 0; i < count; i++) {
        f->register_bytes = ptx_grow(f->register_bytes, f->num_registers, &f->cap_registers, 1);
        f->register_bytes[f->num_registers++] = (uint8_t)bytes;
    }
    return first;
}

/* .reg .b32 %r<194>;  .reg .pred p, q; */
static void registers(struct ptx_parser *p) {
    struct ptx_function *f = p->f;
    if (p->lx.token.kind != PTX_DIRECTIVE || ptx_type_bytes(p->lx.token.text) < 0)
        ptx_fail(&p->lx, p->lx.token.line, "'%.*s' is not a register type", p->lx.token.text.len,
                 p->lx.token.text.s);
    int32_t bytes = ptx_type_bytes(p->lx.token.text);
    if (bytes > 8)
        ptx_fail(&p->lx, p->lx.token.line, "registers of 128 bits are not supported");
    ptx_next(&p->lx);
    do {
        struct ptx_register_range r = {.name = p->lx.token.text, .scope = p->scope};
        if (p->lx.token.kind != PTX_NAME)
            ptx_fail(&p->lx, p->lx.token.line, "a register name expected");
        ptx_next(&p->lx);
        if (ptx_accept(&p->lx, '<')) {
            r.count = (int32_t)p->lx.token.number;
            ptx_next(&p->lx);
            ptx_expect(&p->lx, '>');
        }
        r.first = add_registers(f, r.count ? r.count : 1, bytes);
        f->ranges = ptx_grow(f->ranges, f->num_ranges, &f->cap_ranges, sizeof *f->ranges);
        f->ranges[f->num_ranges++] = r;
    } while (ptx_accept(&p->lx, ','));
    ptx_expect(&p->lx, ';');
}

static bool visible(const struct ptx_parser *p, int32_t scope) {
    for (int32_t s = p->scope; s >= 0; s = p->f->scope_parent[s])
        if (s == scope)
            return true;
    return false;
}

/* The inner declarations come last, so the search from the end finds the nearest. */
static int32_t find_register(const struct ptx_parser *p, struct ptx_text name) {
    struct ptx_text prefix = name;
    int32_t number = 0, scale = 1;
    while (prefix.len && isdigit((unsigned char)prefix.s[prefix.len - 1]) && scale < 100000000) {
        number += (prefix.s[--prefix.len] - '0') * scale;
        scale *= 10;
    }
    for (int32_t i = p->f->num_ranges - 1; i >= 0; i--) {
        const struct ptx_register_range *r = &p->f->ranges[i];
        if (r->count ? number >= r->count || !ptx_text_same(r->name, prefix)
                     : !ptx_text_same(r->name, name))
            continue;
        if (visible(p, r->scope))
            return r->count ? r->first + number : r->first;
    }
    return -1;
}

/* ---- operands -------------------------------------------------------------------------------- */

static void operand(struct ptx_parser *p, struct ptx_operand *o);

static void list(struct ptx_parser *p, struct ptx_operand *o, char close) {
    struct ptx_operand items[16];
    o->kind = PTX_OP_LIST;
    while (!ptx_accept(&p->lx, close)) {
        if (o->num_items == 16)
            ptx_fail(&p->lx, p->lx.token.line, "a list of more than 16 operands");
        operand(p, &items[o->num_items++]);
        if (p->lx.token.kind == PTX_END)
            ptx_fail(&p->lx, p->lx.token.line, "a list does not end");
        ptx_accept(&p->lx, ',');
    }
    o->items = ptx_alloc(&p->m->arena, (size_t)o->num_items * sizeof items[0] + 1);
    memcpy(o->items, items, (size_t)o->num_items * sizeof items[0]);
}

static void named(struct ptx_parser *p, struct ptx_operand *o) {
    o->text = p->lx.token.text;
    ptx_next(&p->lx);
    if (ptx_text_is(o->text, "_")) {
        o->kind = PTX_OP_SINK;
        return;
    }
    o->index = find_register(p, o->text);
    if (o->index >= 0) {
        o->kind = PTX_OP_REGISTER;
        if (ptx_accept(&p->lx, '|')) {
            o->second = find_register(p, p->lx.token.text);
            if (o->second < 0 && !ptx_text_is(p->lx.token.text, "_"))
                ptx_fail(&p->lx, p->lx.token.line, "unknown register '%.*s'", p->lx.token.text.len,
                         p->lx.token.text.s);
            ptx_next(&p->lx);
        }
        return;
    }
    o->kind = o->text.s[0] == '%' ? PTX_OP_SPECIAL : PTX_OP_NAME;
    o->var = ptx_find_variable(p, o->text);
    if (o->var)
        o->kind = PTX_OP_NAME;
    if (ptx_text_is(o->text, "WARP_SZ")) {
        o->kind = PTX_OP_INT;
        o->value = 32;
    }
}

static void address(struct ptx_parser *p, struct ptx_operand *o) {
    operand(p, o);
    if (o->kind == PTX_OP_REGISTER || o->kind == PTX_OP_NAME) {
        if (o->kind == PTX_OP_NAME && !o->var)
            ptx_fail(&p->lx, p->lx.token.line, "unknown name '%.*s' in an address", o->text.len,
                     o->text.s);
    } else if (o->kind != PTX_OP_INT) {
        ptx_fail(&p->lx, p->lx.token.line, "this cannot be an address");
    }
    o->kind = PTX_OP_ADDRESS;
    ptx_expect(&p->lx, ']');
}

static void operand(struct ptx_parser *p, struct ptx_operand *o) {
    *o = (struct ptx_operand){.index = -1, .second = -1};
    if (ptx_accept(&p->lx, '[')) {
        address(p, o);
        return;
    }
    if (ptx_accept(&p->lx, '{')) {
        list(p, o, '}');
        return;
    }
    if (ptx_accept(&p->lx, '(')) {
        list(p, o, ')');
        return;
    }
    o->negated = ptx_accept(&p->lx, '!');
    bool minus = ptx_accept(&p->lx, '-');
    struct ptx_token t = p->lx.token;
    if (t.kind == PTX_NUMBER) {
        o->kind = PTX_OP_INT;
        o->value = (int64_t)(minus ? 0 - t.number : t.number);
        ptx_next(&p->lx);
    } else if (t.kind == PTX_REAL) {
        o->kind = PTX_OP_REAL;
        o->real = t.real ^ (!minus ? 0 : t.single ? 0x80000000u : 1ull << 63);
        o->single = t.single;
        ptx_next(&p->lx);
    } else if (t.kind == PTX_NAME) {
        named(p, o);
    } else {
        ptx_fail(&p->lx, t.line, "an operand expected before '%.*s'", t.text.len, t.text.s);
    }
    while (p->lx.token.kind == PTX_PUNCT &&
           (p->lx.token.punct == '+' || p->lx.token.punct == '-')) {
        int64_t sign = p->lx.token.punct == '+' ? 1 : -1;
        ptx_next(&p->lx);
        if (ptx_accept(&p->lx, '-'))
            sign = -sign;
        if (p->lx.token.kind != PTX_NUMBER)
            ptx_fail(&p->lx, p->lx.token.line, "a number expected after the sign");
        o->value += sign * (int64_t)p->lx.token.number;
        ptx_next(&p->lx);
    }
}

/* ---- instructions ---------------------------------------------------------------------------- */

static struct ptx_text statement_text(const struct ptx_lexer *lx, const char *from) {
    const char *end = from;
    while (end < lx->end && *end != ';' && *end != '\n')
        end++;
    return (struct ptx_text){from, (int32_t)(end - from)};
}

static void instruction(struct ptx_parser *p, const char *from, int32_t guard, bool guard_not) {
    struct ptx_function *f = p->f;
    struct ptx_operand ops[PTX_MAX_OPERANDS];
    struct ptx_instruction in = {.op = p->lx.token.text,
                                 .line = p->lx.token.line,
                                 .guard = guard,
                                 .guard_not = guard_not,
                                 .loc = p->loc,
                                 .scope = p->scope};
    in.text = statement_text(&p->lx, from);
    ptx_next(&p->lx);
    while (!ptx_accept(&p->lx, ';')) {
        if (in.num_operands == PTX_MAX_OPERANDS)
            ptx_fail(&p->lx, in.line, "more than %d operands: %.*s", PTX_MAX_OPERANDS, in.text.len,
                     in.text.s);
        operand(p, &ops[in.num_operands++]);
        if (p->lx.token.kind != PTX_PUNCT || (p->lx.token.punct != ',' && p->lx.token.punct != ';'))
            ptx_fail(&p->lx, p->lx.token.line, "',' or ';' expected before '%.*s'",
                     p->lx.token.text.len, p->lx.token.text.s);
        ptx_accept(&p->lx, ',');
    }
    in.operands = ptx_alloc(&p->m->arena, (size_t)in.num_operands * sizeof ops[0] + 1);
    memcpy(in.operands, ops, (size_t)in.num_operands * sizeof ops[0]);
    f->code = ptx_grow(f->code, f->num_code, &f->cap_code, sizeof *f->code);
    f->code[f->num_code++] = in;
}

static struct ptx_label *add_label(struct ptx_parser *p, struct ptx_text name) {
    struct ptx_function *f = p->f;
    f->labels = ptx_grow(f->labels, f->num_labels, &f->cap_labels, sizeof *f->labels);
    struct ptx_label *l = &f->labels[f->num_labels++];
    *l = (struct ptx_label){.name = name, .scope = p->scope, .target = f->num_code};
    return l;
}

/* name: .branchtargets A, B, C; */
static void branch_targets(struct ptx_parser *p, struct ptx_label *l) {
    struct ptx_text targets[1024];
    do {
        if (l->num_targets == 1024)
            ptx_fail(&p->lx, p->lx.token.line, "more than 1024 branch targets");
        targets[l->num_targets++] = p->lx.token.text;
        ptx_next(&p->lx);
    } while (ptx_accept(&p->lx, ','));
    ptx_expect(&p->lx, ';');
    l->targets = ptx_alloc(&p->m->arena, (size_t)l->num_targets * sizeof targets[0]);
    memcpy(l->targets, targets, (size_t)l->num_targets * sizeof targets[0]);
}

static void body_directive(struct ptx_parser *p) {
    struct ptx_token t = p->lx.token;
    ptx_next(&p->lx);
    if (ptx_text_is(t.text, ".reg"))
        registers(p);
    else if (ptx_text_is(t.text, ".loc"))
        ptx_parse_location(p);
    else if (ptx_text_is(t.text, ".shared"))
        ptx_parse_variables(p, PTX_SHARED, false);
    else if (ptx_text_is(t.text, ".local"))
        ptx_parse_variables(p, PTX_LOCAL, false);
    else if (ptx_text_is(t.text, ".param"))
        ptx_parse_variables(p, PTX_PARAM, false);
    else if (ptx_text_is(t.text, ".global") || ptx_text_is(t.text, ".const"))
        ptx_parse_variables(p, t.text.s[1] == 'g' ? PTX_GLOBAL : PTX_CONST, false);
    else if (ptx_text_is(t.text, ".pragma"))
        while (!ptx_accept(&p->lx, ';'))
            ptx_next(&p->lx);
    else
        ptx_fail(&p->lx, t.line, "unknown directive '%.*s'", t.text.len, t.text.s);
}

static void labelled_or_instruction(struct ptx_parser *p) {
    struct ptx_token name = p->lx.token;
    struct ptx_lexer look = p->lx;
    ptx_next(&look);
    if (look.token.kind == PTX_PUNCT && look.token.punct == ':') {
        ptx_next(&look);
        p->lx = look;
        struct ptx_label *l = add_label(p, name.text);
        if (p->lx.token.kind == PTX_DIRECTIVE && ptx_text_is(p->lx.token.text, ".branchtargets")) {
            ptx_next(&p->lx);
            branch_targets(p, l);
        }
        return;
    }
    instruction(p, name.text.s, -1, false);
}

static void guarded(struct ptx_parser *p) {
    const char *from = p->lx.token.text.s;
    ptx_next(&p->lx);
    bool negated = ptx_accept(&p->lx, '!');
    int32_t guard = find_register(p, p->lx.token.text);
    if (guard < 0 || p->f->register_bytes[guard])
        ptx_fail(&p->lx, p->lx.token.line, "'%.*s' is not a predicate", p->lx.token.text.len,
                 p->lx.token.text.s);
    ptx_next(&p->lx);
    instruction(p, from, guard, negated);
}

void ptx_parse_body(struct ptx_parser *p) {
    struct ptx_function *f = p->f;
    for (;;) {
        struct ptx_token t = p->lx.token;
        if (t.kind == PTX_END)
            ptx_fail(&p->lx, t.line, "the body of %.*s does not end", f->name.len, f->name.s);
        if (t.kind == PTX_DIRECTIVE) {
            body_directive(p);
        } else if (t.kind == PTX_NAME) {
            labelled_or_instruction(p);
        } else if (t.kind == PTX_PUNCT && t.punct == '@') {
            guarded(p);
        } else if (ptx_accept(&p->lx, '{')) {
            f->scope_parent =
                ptx_grow(f->scope_parent, f->num_scopes, &f->cap_scopes, sizeof *f->scope_parent);
            f->scope_parent[f->num_scopes] = p->scope;
            p->scope = f->num_scopes++;
        } else if (ptx_accept(&p->lx, '}')) {
            while (f->num_ranges && f->ranges[f->num_ranges - 1].scope == p->scope)
                f->num_ranges--; /* out of sight from here on */
            p->scope = f->scope_parent[p->scope];
            if (p->scope < 0)
                return;
        } else if (!ptx_accept(&p->lx, ';')) {
            ptx_fail(&p->lx, t.line, "unexpected '%.*s'", t.text.len, t.text.s);
        }
    }
}

const struct ptx_label *ptx_find_label(const struct ptx_function *f, struct ptx_text name,
                                       int32_t scope) {
    for (int32_t s = scope; s >= 0; s = f->scope_parent[s])
        for (int32_t i = 0; i < f->num_labels; i++)
            if (f->labels[i].scope == s && ptx_text_same(f->labels[i].name, name))
                return &f->labels[i];
    return NULL;
}
