/* Decodes ld, st and the hints about caches. */
#include "tests/ptxvm/decode_memory.h"

#include "tests/ptxvm/exec_memory.h"

static const struct {
    const char *part;
    enum ptx_space space;
} spaces[] = {
    {"global", PTX_GLOBAL},      {"shared", PTX_SHARED},     {"shared::cta", PTX_SHARED},
    {"local", PTX_LOCAL},        {"const", PTX_CONST},       {"param", PTX_PARAM},
    {"param::entry", PTX_PARAM}, {"param::func", PTX_PARAM},
};

void vm_decode_space(struct vm_decoder *d, const struct ptx_operand *address, struct vm_inst *i) {
    size_t ignored;
    i->space = PTX_GENERIC;
    for (size_t n = 0; n < sizeof spaces / sizeof *spaces; n++)
        if (vm_has_part(d, spaces[n].part))
            i->space = (uint8_t)spaces[n].space;
    if (i->space != PTX_PARAM)
        return;
    /* Arguments that are built for a call, and the parameters of a function, lie in the frame. */
    bool of_kernel =
        address->var ? vm_is_kernel_param(d, address->var, &ignored) : d->frame->f->is_entry;
    i->space = of_kernel ? PTX_PARAM : PTX_LOCAL;
}

void vm_decode_order(const struct vm_decoder *d, bool atomic, struct vm_inst *i) {
    i->order =
        atomic || vm_has_part(d, "volatile") || vm_has_part(d, "relaxed") ? VM_RELAXED : VM_WEAK;
    if (vm_has_part(d, "acquire") || vm_has_part(d, "acq_rel"))
        i->order |= VM_ACQUIRE;
    if (vm_has_part(d, "release") || vm_has_part(d, "acq_rel"))
        i->order |= VM_RELEASE;
}

static const struct {
    const char *name;
    enum vm_element element;
    uint8_t bytes;
} elements[] = {
    {"b8", VM_U8, 1},   {"u8", VM_U8, 1},   {"s8", VM_S8, 1},   {"b16", VM_U16, 2},
    {"u16", VM_U16, 2}, {"s16", VM_S16, 2}, {"f16", VM_U16, 2}, {"bf16", VM_U16, 2},
    {"b32", VM_U32, 4}, {"u32", VM_U32, 4}, {"s32", VM_S32, 4}, {"f32", VM_U32, 4},
    {"b64", VM_U64, 8}, {"u64", VM_U64, 8}, {"s64", VM_U64, 8}, {"f64", VM_U64, 8},
};

static bool decode_type(struct vm_decoder *d, struct vm_inst *i) {
    struct ptx_text type = d->parts[d->num_parts - 1];
    for (size_t n = 0; n < sizeof elements / sizeof *elements; n++)
        if (ptx_text_is(type, elements[n].name)) {
            i->type = (uint8_t)elements[n].element;
            i->size = elements[n].bytes;
            return true;
        }
    return vm_refuse(d, "this type of a memory element is not supported");
}

/* Bytes of the registers; immediates and sinks take those of the element. */
static uint32_t register_bytes(const struct vm_decoder *d, const struct ptx_operand *values,
                               int32_t count, uint32_t element) {
    for (int32_t n = 0; n < count; n++)
        if (values[n].kind == PTX_OP_REGISTER)
            return (uint32_t)vm_operand_bytes(d, &values[n]);
    return element == 1 ? 2 : element;
}

static bool decode_values(struct vm_decoder *d, const struct ptx_operand *o, bool load,
                          struct vm_inst *i) {
    const struct ptx_operand *values = o->kind == PTX_OP_LIST ? o->items : o;
    int32_t count = o->kind == PTX_OP_LIST ? o->num_items : 1;
    int32_t expected = vm_has_part(d, "v8")   ? 8
                       : vm_has_part(d, "v4") ? 4
                       : vm_has_part(d, "v2") ? 2
                                              : 1;
    if (count != expected || count * i->size > 32)
        return vm_refuse(d, "the vector has another number of registers");
    uint32_t bytes = register_bytes(d, values, count, i->size);
    if (bytes < i->size || bytes < 2)
        return vm_refuse(d, "a register is narrower than the memory element");
    uint32_t *more = vm_more(d, count);
    for (int32_t n = 0; n < count; n++)
        if (!(load ? vm_destination(d, &values[n], bytes, &more[n])
                   : vm_operand(d, &values[n], bytes, &more[n])))
            return false;
    i->more = more;
    i->vec = (uint8_t)count;
    i->kind = bytes == 2 ? 0 : bytes == 4 ? 1 : 2;
    return true;
}

static void do_nothing(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    (void)w, (void)i, (void)m;
}

bool vm_decode_memory(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_instruction *in = d->in;
    bool store = ptx_text_is(d->parts[0], "st");
    i->run = do_nothing;
    if (!store && !ptx_text_is(d->parts[0], "ld") && !ptx_text_is(d->parts[0], "ldu"))
        return true; /* a hint about caches */
    /* A third operand is a cache policy. */
    if (in->num_operands < 2 || in->num_operands > 3)
        return vm_refuse(d, "an address and a value are expected");
    if (vm_has_part(d, "shared::cluster") || vm_has_part(d, "async"))
        return vm_refuse(d, "clusters are not supported");
    const struct ptx_operand *address = &in->operands[store ? 0 : 1];
    vm_decode_space(d, address, i);
    vm_decode_order(d, false, i);
    if (!decode_type(d, i) || !vm_address(d, address, i) ||
        !decode_values(d, &in->operands[store ? 1 : 0], !store, i))
        return false;
    if (store && i->space == PTX_PARAM)
        return vm_refuse(d, "a kernel's parameters cannot be written");
    if (store && i->type >= VM_S8)
        i->type = (uint8_t)(i->type - VM_S8 + VM_U8);
    i->run = store ? vm_store : vm_load;
    if (i->space == PTX_SHARED && !i->order)
        i->run = vm_shared_handler(i, store);
    if (i->space == PTX_PARAM)
        i->run = vm_param_handler(i);
    return true;
}
