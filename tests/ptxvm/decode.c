/* Links a kernel with its functions and decodes every instruction; the operands of decode.h. */
#include "tests/ptxvm/decode.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

enum { CONSTANT_HASH = 4096, RED_ZONE = 128, SHARED_START = 128 };

static void *arena(struct vm_decoder *d, size_t bytes) {
    return ptx_alloc(&d->module->arena, bytes + 1);
}

uint32_t *vm_more(struct vm_decoder *d, int32_t count) {
    return arena(d, (size_t)count * sizeof(uint32_t));
}

bool vm_refuse(struct vm_decoder *d, const char *problem) {
    d->problem = problem;
    return false;
}

bool vm_has_part(const struct vm_decoder *d, const char *part) {
    for (int32_t i = 1; i < d->num_parts; i++)
        if (ptx_text_is(d->parts[i], part))
            return true;
    return false;
}

/* ---- constants ------------------------------------------------------------------------------- */

uint32_t vm_take_register(struct vm_kernel *k, uint32_t lane_bytes) {
    uint32_t bytes = lane_bytes ? lane_bytes * VM_WARP : 4;
    uint32_t align = lane_bytes ? 32 : 4;
    uint32_t at = (k->register_bytes + align - 1) & ~(align - 1);
    k->register_bytes = at + bytes;
    return at;
}

static uint32_t add_constant(struct vm_decoder *d, const struct vm_constant *c) {
    struct vm_kernel *k = d->k;
    uint64_t h = (c->value * 0x9e3779b97f4a7c15u ^ (uintptr_t)c->var ^ c->bytes ^
                  (uint64_t)c->special << 8 ^ (uint64_t)c->is_special << 16) *
                     0x9e3779b97f4a7c15u >>
                 52;
    for (int32_t at = d->constant_hash[h]; at >= 0; at = d->constant_chain[at]) {
        const struct vm_constant *o = &k->constants[at];
        if (o->value == c->value && o->var == c->var && o->bytes == c->bytes &&
            o->is_special == c->is_special && o->special == c->special)
            return o->offset;
    }
    int32_t cap = d->cap_constants;
    k->constants = ptx_grow(k->constants, k->num_constants, &d->cap_constants, sizeof *c);
    d->constant_chain = ptx_grow(d->constant_chain, k->num_constants, &cap, sizeof(int32_t));
    d->constant_chain[k->num_constants] = d->constant_hash[h];
    d->constant_hash[h] = k->num_constants;
    struct vm_constant *n = &k->constants[k->num_constants++];
    *n = *c;
    n->offset = vm_take_register(k, c->bytes);
    return n->offset;
}

static uint64_t truncated(uint64_t v, uint32_t bytes) {
    return !bytes || bytes >= 8 ? v : v & (((uint64_t)1 << (8 * bytes)) - 1);
}

static void note_shared(struct vm_decoder *d, const struct ptx_variable *v) {
    struct vm_kernel *k = d->k;
    for (int32_t i = 0; i < k->num_shared; i++)
        if (k->shared[i].var == v)
            return;
    k->shared = ptx_grow(k->shared, k->num_shared, &d->cap_shared, sizeof *k->shared);
    struct vm_shared_variable *s = &k->shared[k->num_shared++];
    *s = (struct vm_shared_variable){v, 0, (uint32_t)v->bytes};
    if (v->external)
        return;
    /* Where a block of the GPU has no gaps, this one has: what runs over the end of an array meets
     * one. 128 bytes keep the banks as they are. */
    uint32_t align = v->align > RED_ZONE ? (uint32_t)v->align : RED_ZONE;
    s->offset = (k->shared_end + align - 1) & ~(align - 1);
    k->shared_end = s->offset + s->bytes + RED_ZONE;
    size_t a = (size_t)v->align;
    k->static_shared = ((k->static_shared + a - 1) & ~(a - 1)) + (size_t)v->bytes;
}

uint32_t vm_constant(struct vm_decoder *d, uint64_t value, const struct ptx_variable *var,
                     uint32_t bytes) {
    struct vm_constant c = {.bytes = (uint8_t)bytes, .value = truncated(value, bytes), .var = var};
    if (var && var->space == PTX_SHARED)
        note_shared(d, var);
    return add_constant(d, &c);
}

uint32_t vm_special_register(struct vm_decoder *d, enum vm_special s, uint32_t bytes) {
    struct vm_constant c = {.bytes = (uint8_t)bytes, .is_special = 1, .special = s};
    return add_constant(d, &c);
}

/* ---- operands -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum vm_special special;
} specials[] = {
    {"%tid.x", VM_TID_X},
    {"%tid.y", VM_TID_Y},
    {"%tid.z", VM_TID_Z},
    {"%ntid.x", VM_NTID_X},
    {"%ntid.y", VM_NTID_Y},
    {"%ntid.z", VM_NTID_Z},
    {"%ctaid.x", VM_CTAID_X},
    {"%ctaid.y", VM_CTAID_Y},
    {"%ctaid.z", VM_CTAID_Z},
    {"%nctaid.x", VM_NCTAID_X},
    {"%nctaid.y", VM_NCTAID_Y},
    {"%nctaid.z", VM_NCTAID_Z},
    {"%laneid", VM_LANEID},
    {"%warpid", VM_WARPID},
    {"%nwarpid", VM_NWARPID},
    {"%smid", VM_SMID},
    {"%nsmid", VM_NSMID},
    {"%gridid", VM_GRIDID},
    {"%lanemask_eq", VM_LANEMASK_EQ},
    {"%lanemask_le", VM_LANEMASK_LE},
    {"%lanemask_lt", VM_LANEMASK_LT},
    {"%lanemask_ge", VM_LANEMASK_GE},
    {"%lanemask_gt", VM_LANEMASK_GT},
    {"%dynamic_smem_size", VM_DYNAMIC_SMEM},
    {"%total_smem_size", VM_TOTAL_SMEM},
    {"%aggr_smem_size", VM_TOTAL_SMEM},
    {"%clusterid.x", VM_CTAID_X},
    {"%clusterid.y", VM_CTAID_Y},
    {"%clusterid.z", VM_CTAID_Z},
    {"%nclusterid.x", VM_NCTAID_X},
    {"%nclusterid.y", VM_NCTAID_Y},
    {"%nclusterid.z", VM_NCTAID_Z},
    {"%cluster_ctaid.x", VM_ZERO},
    {"%cluster_ctaid.y", VM_ZERO},
    {"%cluster_ctaid.z", VM_ZERO},
    {"%cluster_ctarank", VM_ZERO},
    {"%cluster_nctaid.x", VM_ONE},
    {"%cluster_nctaid.y", VM_ONE},
    {"%cluster_nctaid.z", VM_ONE},
    {"%cluster_nctarank", VM_ONE},
};

struct vm_frame *vm_find_frame(struct vm_decoder *d, const struct ptx_function *f) {
    for (int32_t i = 0; i < d->num_frames; i++)
        if (d->frames[i].f == f)
            return &d->frames[i];
    return NULL;
}

static int32_t var_index(const struct ptx_function *f, const struct ptx_variable *v) {
    for (int32_t i = 0; i < f->num_vars; i++)
        if (f->vars[i] == v)
            return i;
    return -1;
}

bool vm_is_kernel_param(const struct vm_decoder *d, const struct ptx_variable *v, size_t *offset) {
    const struct ptx_function *f = d->frame->f;
    if (v->space != PTX_PARAM || !v->is_parameter || !f->is_entry)
        return false;
    for (int32_t i = 0; i < f->num_params; i++)
        if (f->params[i] == v)
            *offset = d->k->param_offset[i];
    return true;
}

bool vm_local_offset(struct vm_decoder *d, const struct ptx_variable *v, uint32_t *offset) {
    int32_t i = var_index(d->frame->f, v);
    if (i < 0 || (v->space != PTX_LOCAL && v->space != PTX_PARAM))
        return false;
    *offset = d->frame->vars[i];
    return true;
}

int32_t vm_operand_bytes(const struct vm_decoder *d, const struct ptx_operand *o) {
    return o->kind == PTX_OP_REGISTER ? d->frame->f->register_bytes[o->index] : -1;
}

static bool real_constant(struct vm_decoder *d, const struct ptx_operand *o, uint32_t bytes,
                          uint32_t *offset) {
    float f;
    double v;
    uint64_t bits = o->real;
    if (o->single && bytes == 8) {
        uint32_t low = (uint32_t)bits;
        memcpy(&f, &low, 4);
        v = (double)f;
        memcpy(&bits, &v, 8);
    } else if (!o->single && bytes == 4) {
        memcpy(&v, &bits, 8);
        f = (float)v;
        bits = 0;
        memcpy(&bits, &f, 4);
    } else if (bytes < 4) {
        return vm_refuse(d, "a floating-point constant does not fit its operand");
    }
    *offset = vm_constant(d, bits, NULL, bytes);
    return true;
}

static bool name_constant(struct vm_decoder *d, const struct ptx_operand *o, uint32_t bytes,
                          uint32_t *offset) {
    const struct ptx_variable *v = o->var;
    size_t param = 0;
    uint32_t local;
    if (!v)
        return vm_refuse(d, "an operand names nothing that is known");
    if (vm_is_kernel_param(d, v, &param))
        *offset = vm_constant(d, param + (uint64_t)o->value, NULL, bytes);
    else if (vm_local_offset(d, v, &local))
        *offset = vm_constant(d, local + (uint64_t)o->value, NULL, bytes);
    else
        *offset = vm_constant(d, (uint64_t)o->value, v, bytes);
    return true;
}

bool vm_operand(struct vm_decoder *d, const struct ptx_operand *o, uint32_t bytes,
                uint32_t *offset) {
    switch (o->kind) {
    case PTX_OP_REGISTER:
        if (d->frame->f->register_bytes[o->index] != bytes)
            return vm_refuse(d, "a register has another width than its operand");
        *offset = d->frame->registers[o->index];
        return true;
    case PTX_OP_INT:
        if (!bytes)
            *offset = vm_constant(d, o->value ? VM_ALL : 0, NULL, 0);
        else
            *offset = vm_constant(d, (uint64_t)o->value, NULL, bytes);
        return true;
    case PTX_OP_REAL:
        return real_constant(d, o, bytes, offset);
    case PTX_OP_SPECIAL:
        for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
            if (ptx_text_is(o->text, specials[i].name)) {
                *offset = vm_special_register(d, specials[i].special, bytes);
                return true;
            }
        if (o->text.len > 7 && !memcmp(o->text.s, "%envreg", 7)) {
            *offset = vm_constant(d, 0, NULL, bytes);
            return true;
        }
        return vm_refuse(d, "unknown special register");
    case PTX_OP_NAME:
        return name_constant(d, o, bytes, offset);
    default:
        return vm_refuse(d, "an operand is not a value");
    }
}

bool vm_destination(struct vm_decoder *d, const struct ptx_operand *o, uint32_t bytes,
                    uint32_t *offset) {
    if (o->kind == PTX_OP_SINK) {
        *offset = d->sink[bytes == 8 ? 0 : bytes == 4 ? 1 : bytes == 2 ? 2 : 3];
        return true;
    }
    if (o->kind != PTX_OP_REGISTER)
        return vm_refuse(d, "the destination is not a register");
    return vm_operand(d, o, bytes, offset);
}

bool vm_address(struct vm_decoder *d, const struct ptx_operand *o, struct vm_inst *i) {
    if (o->kind != PTX_OP_ADDRESS)
        return vm_refuse(d, "an address in brackets is missing");
    i->wide = 1;
    i->imm = o->value;
    if (o->index >= 0) {
        uint32_t bytes = d->frame->f->register_bytes[o->index];
        if (bytes != 4 && bytes != 8)
            return vm_refuse(d, "an address register has to have 32 or 64 bits");
        i->wide = bytes == 8;
        i->a = d->frame->registers[o->index];
        return true;
    }
    if (o->var) {
        struct ptx_operand name = *o;
        name.value = 0;
        return name_constant(d, &name, 8, &i->a);
    }
    i->a = vm_constant(d, 0, NULL, 8);
    return true;
}

/* ---- rows of the families -------------------------------------------------------------------- */

enum { ROW_HASH = 2048 };
static const struct vm_opcode *rows[ROW_HASH];
static pthread_once_t rows_once = PTHREAD_ONCE_INIT;

static uint32_t row_hash(const char *s) {
    uint32_t h = 2166136261u;
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 16777619u;
    return h % ROW_HASH;
}

static void index_rows(void) {
    const struct vm_opcode *tables[] = {vm_int_opcodes, vm_bit_opcodes, vm_float_opcodes,
                                        vm_half_opcodes};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const struct vm_opcode *o = tables[t]; o->name; o++) {
            uint32_t h = row_hash(o->name);
            while (rows[h])
                h = (h + 1) % ROW_HASH;
            rows[h] = o;
        }
}

static const struct vm_opcode *find_row(const char *name) {
    pthread_once(&rows_once, index_rows);
    for (uint32_t h = row_hash(name); rows[h]; h = (h + 1) % ROW_HASH)
        if (!strcmp(rows[h]->name, name))
            return rows[h];
    return NULL;
}

static bool is_float_type(struct ptx_text t) {
    return ptx_text_is(t, "f32") || ptx_text_is(t, "f64") || ptx_text_is(t, "f16") ||
           ptx_text_is(t, "f16x2") || ptx_text_is(t, "bf16") || ptx_text_is(t, "bf16x2");
}

/* Takes a modifier of a floating-point instruction out of the name. */
static bool take_modifier(struct ptx_text part, struct vm_inst *i) {
    static const char *const ignored[] = {"rn", "rni", "approx", "full", "noftz", "uni"};
    for (size_t k = 0; k < sizeof ignored / sizeof *ignored; k++)
        if (ptx_text_is(part, ignored[k]))
            return true;
    if (ptx_text_is(part, "ftz"))
        i->ftz = 1;
    else if (ptx_text_is(part, "sat"))
        i->sat = 1;
    else if (ptx_text_is(part, "rz"))
        i->round = VM_ROUND_ZERO;
    else if (ptx_text_is(part, "rm"))
        i->round = VM_ROUND_DOWN;
    else if (ptx_text_is(part, "rp"))
        i->round = VM_ROUND_UP;
    else
        return false;
    return true;
}

static void wrap_modified(struct vm_decoder *d, struct vm_inst *i, int32_t inputs) {
    struct ptx_text type = d->parts[d->num_parts - 1];
    if (!i->ftz && !i->sat && !i->round)
        return;
    uint32_t *scratch = vm_more(d, 3);
    i->base = i->run;
    i->vec = (uint8_t)inputs;
    i->type = ptx_text_is(type, "f16")     ? VM_F16
              : ptx_text_is(type, "f16x2") ? VM_F16X2
              : ptx_text_is(type, "bf16")  ? VM_BF16
                                           : VM_BF16X2;
    for (int32_t n = 0; n < 3; n++)
        scratch[n] = vm_take_register(d->k, 8);
    i->more = scratch;
    i->run = ptx_text_is(type, "f32")   ? vm_modified_f32
             : ptx_text_is(type, "f64") ? vm_modified_f64
                                        : vm_modified_half;
}

static bool row_operands(struct vm_decoder *d, const char *widths, struct vm_inst *i) {
    uint32_t *more = strlen(widths) > 4 ? vm_more(d, 1) : NULL;
    uint32_t *to[5] = {&i->d, &i->a, &i->b, &i->c, more};
    const struct ptx_instruction *in = d->in;
    int32_t n = 0;
    i->more = more;
    for (; widths[n] && widths[n] != 'C'; n++) {
        uint32_t bytes = widths[n] == 'h' ? 2 : widths[n] == 'w' ? 4 : widths[n] == 'x' ? 8 : 0;
        if (n >= in->num_operands)
            return vm_refuse(d, "operands are missing");
        if (!n ? !vm_destination(d, &in->operands[0], bytes, to[0])
               : !vm_operand(d, &in->operands[n], bytes, to[n]))
            return false;
        if (in->operands[n].negated)
            return vm_refuse(d, "a negated operand is not supported here");
    }
    if (n != in->num_operands)
        return vm_refuse(d, "there are too many operands");
    return true;
}

bool vm_decode_table(struct vm_decoder *d, struct vm_inst *i) {
    char name[128];
    bool real = d->num_parts > 1 && is_float_type(d->parts[d->num_parts - 1]);
    int n = snprintf(name, sizeof name, "%.*s", d->parts[0].len, d->parts[0].s);
    for (int32_t p = 1; p < d->num_parts; p++)
        if (!real || !take_modifier(d->parts[p], i))
            n += snprintf(name + n, sizeof name - (size_t)n, ".%.*s", d->parts[p].len,
                          d->parts[p].s);
    const struct vm_opcode *row = find_row(name);
    if (!row || !row_operands(d, row->operands, i))
        return false;
    i->run = row->run;
    if (strchr(row->operands, 'C'))
        i->q = d->sink[3] + 4; /* the carry flag, which follows the predicate sink */
    if (real)
        wrap_modified(d, i, (int32_t)strlen(row->operands) - 1);
    return true;
}

/* ---- instructions ---------------------------------------------------------------------------- */

static bool split_opcode(struct vm_decoder *d) {
    struct ptx_text op = d->in->op;
    d->num_parts = 0;
    for (int32_t at = 0, start = 0; at <= op.len; at++)
        if (at == op.len || op.s[at] == '.') {
            if (d->num_parts == VM_MAX_PARTS)
                return false;
            d->parts[d->num_parts++] = (struct ptx_text){op.s + start, at - start};
            start = at + 1;
        }
    return true;
}

static const struct {
    const char *op;
    bool (*decode)(struct vm_decoder *, struct vm_inst *);
} families[] = {
    {"ld", vm_decode_memory},
    {"st", vm_decode_memory},
    {"ldu", vm_decode_memory},
    {"prefetch", vm_decode_memory},
    {"prefetchu", vm_decode_memory},
    {"discard", vm_decode_memory},
    {"applypriority", vm_decode_memory},
    {"mov", vm_decode_move},
    {"cvta", vm_decode_move},
    {"isspacep", vm_decode_move},
    {"createpolicy", vm_decode_move},
    {"nanosleep", vm_decode_move},
    {"activemask", vm_decode_warp},
    {"cvt", vm_decode_convert},
    {"setp", vm_decode_compare},
    {"set", vm_decode_compare},
    {"selp", vm_decode_compare},
    {"slct", vm_decode_compare},
    {"bra", vm_decode_control},
    {"brx", vm_decode_control},
    {"call", vm_decode_control},
    {"ret", vm_decode_control},
    {"exit", vm_decode_control},
    {"trap", vm_decode_control},
    {"brkpt", vm_decode_control},
    {"bar", vm_decode_control},
    {"barrier", vm_decode_control},
    {"membar", vm_decode_control},
    {"fence", vm_decode_control},
    {"griddepcontrol", vm_decode_control},
    {"pmevent", vm_decode_control},
    {"shfl", vm_decode_warp},
    {"vote", vm_decode_warp},
    {"match", vm_decode_warp},
    {"redux", vm_decode_warp},
    {"elect", vm_decode_warp},
    {"ldmatrix", vm_decode_matrix},
    {"stmatrix", vm_decode_matrix},
    {"movmatrix", vm_decode_matrix},
    {"mma", vm_decode_matrix},
    {"cp", vm_decode_copy},
    {"atom", vm_decode_atomic},
    {"red", vm_decode_atomic},
};

static bool decode_one(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_instruction *in = d->in;
    d->problem = NULL;
    if (!split_opcode(d))
        return false;
    if (in->guard >= 0)
        i->guard = (int32_t)d->frame->registers[in->guard];
    i->guard_not = in->guard_not;
    i->q = d->sink[3];
    i->c = d->true_pred;
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        if (ptx_text_is(d->parts[0], families[f].op))
            return families[f].decode(d, i);
    return vm_decode_table(d, i);
}

/* ---- linking --------------------------------------------------------------------------------- */

static uint32_t emitted(const struct ptx_instruction *in) {
    /* A call is two: the way there, and what it brings back. */
    return in->op.len >= 4 && !memcmp(in->op.s, "call", 4) ? 2 : 1;
}

static const struct ptx_function *callee(const struct vm_decoder *d,
                                         const struct ptx_instruction *in) {
    for (int32_t i = 0; i < in->num_operands; i++)
        if (in->operands[i].kind == PTX_OP_NAME && !in->operands[i].var)
            return ptx_find_function(d->module->ptx, in->operands[i].text);
    return NULL;
}

/* Adds f after all that it calls. depth stops recursion. */
static bool collect(struct vm_decoder *d, const struct ptx_function *f, int depth) {
    if (vm_find_frame(d, f))
        return true;
    if (depth > 64)
        return vm_refuse(d, "functions call each other in a circle");
    for (int32_t i = 0; i < f->num_code; i++) {
        d->in = &f->code[i];
        if (emitted(d->in) != 2)
            continue;
        const struct ptx_function *g = callee(d, d->in);
        if (g && g->has_body && !collect(d, g, depth + 1))
            return false;
    }
    d->frames = ptx_grow(d->frames, d->num_frames, &d->cap_frames, sizeof *d->frames);
    d->frames[d->num_frames++] = (struct vm_frame){.f = f};
    return true;
}

static void lay_out_frame(struct vm_decoder *d, struct vm_frame *fr) {
    const struct ptx_function *f = fr->f;
    struct vm_kernel *k = d->k;
    fr->registers = vm_more(d, f->num_registers);
    fr->vars = vm_more(d, f->num_vars);
    vm_allocate_registers(d, fr);
    fr->return_pc = vm_take_register(k, 4);
    size_t ignored;
    d->frame = fr;
    for (int32_t i = 0; i < f->num_vars; i++) {
        const struct ptx_variable *v = f->vars[i];
        if ((v->space != PTX_LOCAL && v->space != PTX_PARAM) || vm_is_kernel_param(d, v, &ignored))
            continue;
        size_t align = v->align > 8 ? (size_t)v->align : 8;
        k->local_bytes = (k->local_bytes + align - 1) & ~(align - 1);
        fr->vars[i] = (uint32_t)k->local_bytes;
        k->local_bytes += (size_t)v->bytes;
    }
}

static void lay_out_params(struct vm_decoder *d, const struct ptx_function *f) {
    struct vm_kernel *k = d->k;
    k->num_params = f->num_params;
    k->param_offset = arena(d, (size_t)f->num_params * sizeof(size_t));
    k->param_bytes = arena(d, (size_t)f->num_params * sizeof(size_t));
    for (int32_t i = 0; i < f->num_params; i++) {
        size_t align = (size_t)f->params[i]->align;
        k->params_bytes = (k->params_bytes + align - 1) & ~(align - 1);
        k->param_offset[i] = k->params_bytes;
        k->param_bytes[i] = (size_t)f->params[i]->bytes;
        k->params_bytes += k->param_bytes[i];
    }
}

static bool decode_frame(struct vm_decoder *d, struct vm_frame *fr) {
    struct vm_kernel *k = d->k;
    const struct ptx_function *f = fr->f;
    uint32_t at = fr->first_inst;
    d->frame = fr;
    for (int32_t n = 0; n < f->num_code; n++) {
        d->in = &f->code[n];
        for (uint32_t half = 0; half < emitted(d->in); half++, at++) {
            struct vm_inst *i = &k->code[at];
            i->guard = -1;
            i->where = at;
            i->kind = (uint8_t)half;
            k->where[at] = d->in;
            if (!decode_one(d, i))
                return false;
        }
    }
    /* Running off the end is a return. */
    static const struct ptx_instruction end = {.op = {"ret", 3}, .text = {"ret", 3}, .guard = -1};
    d->in = &end;
    k->code[at].guard = -1;
    k->code[at].where = at;
    k->where[at] = f->num_code ? &f->code[f->num_code - 1] : &end;
    return decode_one(d, &k->code[at]);
}

static bool link_kernel(struct vm_decoder *d, const struct ptx_function *f) {
    struct vm_kernel *k = d->k;
    d->frame = NULL;
    if (!collect(d, f, 0))
        return false;
    lay_out_params(d, f);
    for (int32_t i = 0; i < d->num_frames; i++) {
        d->frames[i].first_inst = k->num_code;
        for (int32_t n = 0; n < d->frames[i].f->num_code; n++)
            k->num_code += emitted(&d->frames[i].f->code[n]);
        k->num_code++;
    }
    for (int32_t i = 0; i < 3; i++)
        d->sink[i] = vm_take_register(k, 8u >> i);
    d->sink[3] = vm_take_register(k, 0);
    vm_take_register(k, 0); /* the carry flag */
    for (int32_t i = 0; i < d->num_frames; i++)
        lay_out_frame(d, &d->frames[i]);
    k->written_bytes = k->register_bytes;
    d->true_pred = vm_special_register(d, VM_TRUE, 0);
    k->code = arena(d, (k->num_code + 1) * sizeof *k->code);
    k->where = arena(d, (k->num_code + 1) * sizeof *k->where);
    for (int32_t i = 0; i < d->num_frames; i++)
        if (!decode_frame(d, &d->frames[i]))
            return false;
    k->entry = vm_find_frame(d, f)->first_inst;
    return true;
}

/* The dynamic part follows the static one. */
static void finish_shared(struct vm_kernel *k) {
    size_t align = 16;
    for (int32_t i = 0; i < k->num_shared; i++)
        if (k->shared[i].var->external && (size_t)k->shared[i].var->align > align)
            align = (size_t)k->shared[i].var->align;
    size_t wide = align > RED_ZONE ? align : RED_ZONE;
    k->dynamic_offset = (uint32_t)((k->shared_end + wide - 1) & ~(wide - 1));
    for (int32_t i = 0; i < k->num_shared; i++)
        if (k->shared[i].var->external)
            k->shared[i].offset = k->dynamic_offset;
    k->local_bytes = (k->local_bytes + 15) & ~(size_t)15;
    k->register_bytes = (k->register_bytes + 63) & ~63u;
}

struct vm_kernel *vm_decode_kernel(struct vm_module *m, const struct ptx_function *f, char *error,
                                   size_t error_bytes) {
    struct vm_decoder d = {.module = m};
    struct vm_kernel *k = d.k = ptx_alloc(&m->arena, sizeof *k);
    k->module = m;
    k->name = ptx_text_copy(&m->arena, f->name);
    static _Atomic uint64_t last_serial;
    k->serial = atomic_fetch_add(&last_serial, 1) + 1;
    k->max_threads = f->max_threads ? f->max_threads : 1024;
    k->shared_end = SHARED_START;
    d.constant_hash = rt_calloc_array(CONSTANT_HASH, sizeof(int32_t));
    memset(d.constant_hash, 0xff, CONSTANT_HASH * sizeof(int32_t));
    bool ok = link_kernel(&d, f);
    if (ok)
        finish_shared(k);
    else
        snprintf(error, error_bytes, "PTX line %d: %s: %.*s", d.in ? d.in->line : 0,
                 d.problem ? d.problem : "unknown instruction", d.in ? d.in->text.len : 0,
                 d.in ? d.in->text.s : "");
    rt_free(d.constant_hash);
    rt_free(d.constant_chain);
    rt_free(d.frames);
    if (ok)
        return k;
    rt_free(k->constants);
    rt_free(k->shared);
    return NULL;
}
