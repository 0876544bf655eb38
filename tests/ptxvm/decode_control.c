/* Branches, calls, ends, barriers and fences. */
#include "tests/ptxvm/builtins.h"
#include "tests/ptxvm/decode.h"

#include <string.h>

static void nothing(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    (void)w, (void)i, (void)m;
}

/* ---- branches
 * -------------------------------------------------------------------------------------- */

/* The lanes of m go to target. The backward branch of a loop that polls memory lets others go on.
 */
static void jump(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint32_t target) {
    bool polls = w->polled && target <= i->where;
    if (m == w->active && !polls) {
        w->pc = target;
        return;
    }
    vm_scatter(w, m, target);
    if (polls) {
        w->polled = 0;
        w->avoid |= m;
    }
}

static void branch(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    jump(w, i, m, i->target);
}

static void branch_indexed(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *index = VM_REG(w, i->a, uint32_t);
    while (m) {
        int l = vm_first(m);
        uint32_t same = 0, n = index[l];
        if (n >= (uint64_t)i->imm)
            vm_fault(w, i, l, VM_FAULT, "branch target %u of %lld", n, (long long)i->imm);
        for (uint32_t left = m; left; left &= left - 1)
            same |= index[vm_first(left)] == n ? left & -left : 0;
        m &= ~same;
        jump(w, i, same, i->table[n]);
    }
}

/* Index in the kernel of the n-th instruction of the current frame: calls take two places. */
static uint32_t instruction_index(const struct vm_decoder *d, int32_t n) {
    const struct ptx_function *f = d->frame->f;
    const struct vm_frame *last = &d->frames[d->num_frames - 1];
    uint32_t end = d->frame == last ? d->k->num_code : d->frame[1].first_inst;
    uint32_t at = d->frame->first_inst + (uint32_t)n;
    if (end - d->frame->first_inst == (uint32_t)f->num_code + 1)
        return at;
    for (int32_t k = 0; k < n; k++)
        at += f->code[k].op.len >= 4 && !memcmp(f->code[k].op.s, "call", 4);
    return at;
}

static bool label_target(struct vm_decoder *d, struct ptx_text name, uint32_t *target) {
    const struct ptx_label *label = ptx_find_label(d->frame->f, name, d->in->scope);
    if (!label)
        return vm_refuse(d, "unknown label");
    *target = instruction_index(d, label->target);
    return true;
}

static bool decode_branch(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    i->run = branch;
    if (d->in->num_operands != 1 || o[0].kind != PTX_OP_NAME)
        return vm_refuse(d, "a branch needs a label");
    return label_target(d, o[0].text, &i->target);
}

/* brx.idx index, list;  list: .branchtargets A, B; */
static bool decode_indexed(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    if (d->in->num_operands != 2 || o[1].kind != PTX_OP_NAME)
        return vm_refuse(d, "an index and a list of targets expected");
    const struct ptx_label *list = ptx_find_label(d->frame->f, o[1].text, d->in->scope);
    if (!list || !list->num_targets)
        return vm_refuse(d, "unknown list of branch targets");
    uint32_t *table = vm_more(d, list->num_targets);
    for (int32_t n = 0; n < list->num_targets; n++)
        if (!label_target(d, list->targets[n], &table[n]))
            return false;
    i->run = branch_indexed;
    i->imm = list->num_targets;
    i->table = table;
    return vm_operand(d, &o[0], 4, &i->a);
}

/* ---- calls
 * ----------------------------------------------------------------------------------------- */

/* i->table: {from, to, bytes} of imm parts of the thread's frame. */
static void copy_parts(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    size_t frame = w->block->grid->kernel->local_bytes;
    for (uint32_t left = m; left; left &= left - 1) {
        uint8_t *local = w->local + (size_t)vm_first(left) * frame;
        for (int64_t n = 0; n < i->imm; n++)
            memcpy(local + i->table[3 * n + 1], local + i->table[3 * n], i->table[3 * n + 2]);
    }
}

static void call(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint32_t *back = VM_REG(w, i->d, uint32_t);
    copy_parts(w, i, m);
    VM_LANES if (m >> l & 1) back[l] = i->where + 1;
    jump(w, i, m, i->target);
}

static void end_thread(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    vm_exit_lanes(w, i, m);
}

static void return_to_caller(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const uint32_t *back = VM_REG(w, i->a, uint32_t);
    while (m) {
        uint32_t same = 0, to = back[vm_first(m)];
        for (uint32_t left = m; left; left &= left - 1)
            same |= back[vm_first(left)] == to ? left & -left : 0;
        m &= ~same;
        jump(w, i, same, to);
    }
}

static bool decode_return(struct vm_decoder *d, struct vm_inst *i) {
    i->a = d->frame->return_pc;
    i->run = d->frame->f->is_entry ? end_thread : return_to_caller;
    return true;
}

/* Where a function's parameter lies in the thread's frame. */
static uint32_t parameter_offset(const struct vm_frame *fr, const struct ptx_variable *v) {
    for (int32_t i = 0; i < fr->f->num_vars; i++)
        if (fr->f->vars[i] == v)
            return fr->vars[i];
    return 0;
}

/* The copies between the caller's variables in list and the callee's. */
static bool decode_copies(struct vm_decoder *d, struct vm_inst *i, const struct vm_frame *callee,
                          const struct ptx_operand *list, struct ptx_variable **vars, int32_t count,
                          bool results) {
    uint32_t *table = vm_more(d, 3 * count);
    if (list ? list->num_items != count : count && !results)
        return vm_refuse(d, "a call has other arguments than its function");
    i->table = table;
    i->imm = list ? count : 0;
    for (int32_t n = 0; n < i->imm; n++) {
        const struct ptx_variable *v = list->items[n].var;
        uint32_t ours, theirs = parameter_offset(callee, vars[n]);
        if (!v || !vm_local_offset(d, v, &ours) || v->bytes < vars[n]->bytes)
            return vm_refuse(d, "an argument of a call is not a .param variable of its size");
        table[3 * n] = results ? theirs : ours;
        table[3 * n + 1] = results ? ours : theirs;
        table[3 * n + 2] = (uint32_t)vars[n]->bytes;
    }
    return true;
}

static bool decode_builtin(struct vm_decoder *d, struct vm_inst *i, struct ptx_text name,
                           const struct ptx_operand *args, const struct ptx_operand *results) {
    int32_t count;
    i->run = vm_builtin(name, &count);
    if (!i->run)
        return vm_refuse(d, "a call of a function that has no body");
    if (!args || args->num_items != count)
        return vm_refuse(d, "a call has other arguments than its function");
    uint32_t *more = vm_more(d, count + 1);
    i->more = more;
    i->vec = (uint8_t)count;
    more[count] = UINT32_MAX;
    for (int32_t n = 0; n < count; n++)
        if (!args->items[n].var || !vm_local_offset(d, args->items[n].var, &more[n]))
            return vm_refuse(d, "an argument of a call is not a .param variable");
    if (results && results->num_items && results->items[0].var)
        vm_local_offset(d, results->items[0].var, &more[count]);
    if (i->kind)
        i->run = nothing;
    return true;
}

/* call (results), name, (arguments); the first of two instructions goes, the second brings back. */
static bool decode_call(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands, *end = o + d->in->num_operands;
    const struct ptx_operand *results = o < end && o->kind == PTX_OP_LIST ? o++ : NULL;
    if (o == end || o->kind != PTX_OP_NAME || o->var)
        return vm_refuse(d, "only calls of a named function are supported");
    struct ptx_text name = o++->text;
    const struct ptx_operand *args = o < end && o->kind == PTX_OP_LIST ? o : NULL;
    const struct ptx_function *f = ptx_find_function(d->module->ptx, name);
    if (!f || !f->has_body)
        return decode_builtin(d, i, name, args, results);
    const struct vm_frame *callee = vm_find_frame(d, f);
    if (i->kind) {
        i->run = copy_parts;
        return decode_copies(d, i, callee, results, f->results, f->num_results, true);
    }
    i->run = call;
    i->d = callee->return_pc;
    i->target = callee->first_inst;
    return decode_copies(d, i, callee, args, f->params, f->num_params, false);
}

/* ---- barriers
 * -------------------------------------------------------------------------------------- */

static uint32_t same_value(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                           uint32_t offset) {
    const uint32_t *v = VM_REG(w, offset, uint32_t);
    for (uint32_t left = m; left; left &= left - 1)
        if (v[vm_first(left)] != v[vm_first(m)])
            vm_fault(w, i, vm_first(left), VM_FAULT,
                     "the lanes of a warp name different barriers or numbers of threads");
    return v[vm_first(m)];
}

/* a: barrier; b: number of threads when kind; c: predicate of bar.red. */
static void barrier(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint32_t id = same_value(w, i, m, i->a);
    uint32_t count = i->kind ? same_value(w, i, m, i->b) : 0;
    if (i->kind && !count)
        vm_fault(w, i, vm_first(m), VM_FAULT, "barrier %u of 0 threads", id);
    if (i->op >= VM_BAR_POPC && id < VM_BARRIERS) {
        struct vm_barrier *bar = &w->block->barriers[id];
        uint32_t p = (i->negate_c ? ~VM_PRED(w, i->c) : VM_PRED(w, i->c)) & m;
        bar->popc += (uint32_t)__builtin_popcount(p);
        bar->any |= p != 0;
        bar->all &= p == m;
    }
    vm_barrier_arrive(w, i, m, id, count, i->op != VM_BAR_ARRIVE);
}

static bool decode_reduction(struct vm_decoder *d, struct vm_inst *i, const struct ptx_operand *c) {
    i->op = vm_has_part(d, "popc") ? VM_BAR_POPC : vm_has_part(d, "and") ? VM_BAR_AND : VM_BAR_OR;
    i->negate_c = c->negated;
    return vm_destination(d, &d->in->operands[0], i->op == VM_BAR_POPC ? 4 : 0, &i->d) &&
           vm_operand(d, c, 0, &i->c);
}

/* bar.sync a{, b}; bar.arrive a, b; bar.red.op.type d, a{, b}, c; barrier likewise. */
static bool decode_barrier(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    int32_t n = d->in->num_operands;
    bool red = vm_has_part(d, "red");
    if (vm_has_part(d, "warp"))
        return vm_decode_warp(d, i);
    if (vm_has_part(d, "cluster"))
        return vm_refuse(d, "clusters are not supported");
    if (n < (red ? 3 : 1) || n > (red ? 4 : 2))
        return vm_refuse(d, "a barrier has too few or too many operands");
    if (red && !decode_reduction(d, i, &o[n - 1]))
        return false;
    if (vm_has_part(d, "arrive"))
        i->op = VM_BAR_ARRIVE;
    o += red;
    n -= red ? 2 : 0;
    i->run = barrier;
    i->kind = n == 2;
    if (i->op == VM_BAR_ARRIVE && n != 2)
        return vm_refuse(d, "bar.arrive needs a number of threads");
    return vm_operand(d, &o[0], 4, &i->a) && (n < 2 || vm_operand(d, &o[1], 4, &i->b));
}

/* ---- ends and fences
 * ------------------------------------------------------------------------------- */

static void trap(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    vm_fault(w, i, vm_first(m), VM_FAULT, "the kernel traps");
}

static void fence(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    (void)i;
    atomic_thread_fence(memory_order_seq_cst);
    if (w->block->race)
        vm_race_fence(w, m);
}

bool vm_decode_control(struct vm_decoder *d, struct vm_inst *i) {
    static const struct {
        const char *op;
        vm_exec run;
    } plain[] = {{"exit", end_thread}, {"trap", trap},   {"brkpt", trap},
                 {"membar", fence},    {"fence", fence}, {"griddepcontrol", nothing},
                 {"pmevent", nothing}};
    struct ptx_text op = d->parts[0];
    if (ptx_text_is(op, "bra"))
        return decode_branch(d, i);
    if (ptx_text_is(op, "brx"))
        return decode_indexed(d, i);
    if (ptx_text_is(op, "call"))
        return decode_call(d, i);
    if (ptx_text_is(op, "ret"))
        return decode_return(d, i);
    if (ptx_text_is(op, "bar") || ptx_text_is(op, "barrier"))
        return decode_barrier(d, i);
    for (size_t n = 0; n < sizeof plain / sizeof *plain; n++)
        if (ptx_text_is(op, plain[n].op))
            i->run = plain[n].run;
    return i->run != NULL;
}
