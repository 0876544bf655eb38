/* Decodes ldmatrix, stmatrix, movmatrix and mma. */
#include "tests/ptxvm/decode_memory.h"
#include "tests/ptxvm/exec_matrix.h"

static bool registers_of(struct vm_decoder *d, const struct ptx_operand *o, bool written,
                         uint32_t count, uint32_t *out) {
    const struct ptx_operand *items = o->kind == PTX_OP_LIST ? o->items : o;
    int32_t n = o->kind == PTX_OP_LIST ? o->num_items : 1;
    if (n != (int32_t)count)
        return vm_refuse(d, "a matrix has another number of registers");
    for (int32_t r = 0; r < n; r++)
        if (written ? !vm_destination(d, &items[r], 4, &out[r])
                    : !vm_operand(d, &items[r], 4, &out[r]))
            return false;
    return true;
}

static bool decode_rows(struct vm_decoder *d, bool store, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    if (!vm_has_part(d, "m8n8") || !vm_has_part(d, "b16") || d->in->num_operands != 2)
        return vm_refuse(d, "only matrices of 8 x 8 elements of 16 bits are supported");
    i->vec = vm_has_part(d, "x4") ? 4 : vm_has_part(d, "x2") ? 2 : 1;
    i->kind = vm_has_part(d, "trans");
    i->run = store ? vm_stmatrix : vm_ldmatrix;
    uint32_t *more = vm_more(d, i->vec);
    i->more = more;
    vm_decode_space(d, &o[!store], i);
    return vm_address(d, &o[!store], i) && registers_of(d, &o[store], !store, i->vec, more);
}

static bool decode_movmatrix(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    i->run = vm_movmatrix;
    return vm_has_part(d, "m8n8") && vm_has_part(d, "trans") && d->in->num_operands == 2 &&
           vm_destination(d, &o[0], 4, &i->d) && vm_operand(d, &o[1], 4, &i->a);
}

/* ---- mma
 * ------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum vm_matrix_type type;
    uint32_t bits;
    uint8_t k[2]; /* the shapes that there are */
} matrix_types[] = {
    {"f16", VM_MAT_F16, 16, {8, 16}},   {"bf16", VM_MAT_BF16, 16, {8, 16}},
    {"tf32", VM_MAT_TF32, 32, {4, 8}},  {"e4m3", VM_MAT_E4M3, 8, {16, 32}},
    {"e5m2", VM_MAT_E5M2, 8, {16, 32}}, {"s8", VM_MAT_S8, 8, {16, 32}},
    {"u8", VM_MAT_U8, 8, {16, 32}},
};

static int32_t matrix_type(struct ptx_text name) {
    for (size_t n = 0; n < sizeof matrix_types / sizeof *matrix_types; n++)
        if (ptx_text_is(name, matrix_types[n].name))
            return (int32_t)n;
    return -1;
}

static bool decode_types(struct vm_decoder *d, struct vm_inst *i, int32_t *row) {
    const struct ptx_text *types = d->parts + d->num_parts - 4; /* D, A, B, C */
    int32_t a = matrix_type(types[1]), b = matrix_type(types[2]);
    if (a < 0 || b < 0 || matrix_types[a].bits != matrix_types[b].bits)
        return vm_refuse(d, "these elements of a matrix are not supported");
    i->type = (uint8_t)matrix_types[a].type;
    i->op = (uint8_t)matrix_types[b].type;
    i->kind = ptx_text_is(types[0], "f16");
    i->sat = ptx_text_is(types[3], "f16");
    i->ftz = vm_has_part(d, "satfinite");
    bool integer = i->type >= VM_MAT_S8;
    const char *wide = integer ? "s32" : "f32";
    if ((!ptx_text_is(types[0], wide) && (integer || !i->kind)) ||
        (!ptx_text_is(types[3], wide) && (integer || !i->sat)) || integer != (i->op >= VM_MAT_S8) ||
        (i->type != i->op && matrix_types[a].bits != 8))
        return vm_refuse(d, "these elements of a matrix are not supported together");
    *row = a;
    return true;
}

static bool decode_mma(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_operand *o = d->in->operands;
    int32_t row = 0;
    if (d->num_parts < 9 || d->in->num_operands != 4 || !vm_has_part(d, "row") ||
        !vm_has_part(d, "col") || vm_has_part(d, "sp") || vm_has_part(d, "block_scale"))
        return vm_refuse(d, "of mma only the dense form row.col is supported");
    if (!decode_types(d, i, &row))
        return false;
    static const char *const shapes[] = {"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32"};
    for (uint8_t n = 0; n < 4; n++)
        if (vm_has_part(d, shapes[n]))
            i->size = (uint8_t)(4 << n);
    if (i->size != matrix_types[row].k[0] && i->size != matrix_types[row].k[1])
        return vm_refuse(d, "this shape of mma is not supported");
    uint32_t num_d = i->kind ? 2 : 4, num_c = i->sat ? 2 : 4;
    uint32_t num_b = i->size * matrix_types[row].bits / 128, num_a = 2 * num_b;
    uint32_t *more = vm_more(d, VM_MMA_MAX_REGS);
    i->more = more;
    i->run = vm_mma;
    return registers_of(d, &o[0], true, num_d, more) &&
           registers_of(d, &o[1], false, num_a, more + num_d) &&
           registers_of(d, &o[2], false, num_b, more + num_d + num_a) &&
           registers_of(d, &o[3], false, num_c, more + num_d + num_a + num_b);
}

bool vm_decode_matrix(struct vm_decoder *d, struct vm_inst *i) {
    if (ptx_text_is(d->parts[0], "mma"))
        return decode_mma(d, i);
    if (ptx_text_is(d->parts[0], "movmatrix"))
        return decode_movmatrix(d, i);
    return decode_rows(d, ptx_text_is(d->parts[0], "stmatrix"), i);
}
