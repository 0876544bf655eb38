/* Decodes cp.async; copies.c runs it. */
#include "tests/ptxvm/copies.h"
#include "tests/ptxvm/decode.h"

static bool copy_size(struct vm_decoder *d, const struct ptx_operand *o, struct vm_inst *i) {
    if (o->kind != PTX_OP_INT || (o->value != 4 && o->value != 8 && o->value != 16) ||
        (vm_has_part(d, "cg") && o->value != 16))
        return vm_refuse(d, "cp.async copies 4, 8 or 16 bytes, with .cg 16");
    i->size = (uint8_t)o->value;
    return true;
}

/* [to], [from], size, and then the bytes to read (an integer), a predicate that asks for zeros, or
 * nothing; a cache policy may follow. */
static bool decode_issue(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_instruction *in = d->in;
    const struct ptx_operand *o = in->operands;
    int32_t policy = vm_has_part(d, "L2::cache_hint");
    struct vm_inst from = {0};
    if (in->num_operands < 3 + policy || in->num_operands > 4 + policy)
        return vm_refuse(d, "cp.async has another number of operands");
    if (!vm_address(d, &o[1], &from) || !vm_address(d, &o[0], i) || !copy_size(d, &o[2], i))
        return false;
    uint32_t *more = vm_more(d, VM_COPY_MORE);
    more[VM_COPY_FROM] = from.a;
    more[VM_COPY_FROM_LOW] = (uint32_t)from.imm;
    more[VM_COPY_FROM_HIGH] = (uint32_t)((uint64_t)from.imm >> 32);
    more[VM_COPY_FROM_WIDE] = from.wide;
    i->more = more;
    i->run = vm_copy_issue;
    i->kind = VM_COPY_WHOLE;
    if (in->num_operands == 3 + policy)
        return true;
    bool ignored = !vm_operand_bytes(d, &o[3]);
    i->kind = ignored ? VM_COPY_UNLESS : VM_COPY_PART;
    i->negate_c = o[3].negated;
    return vm_operand(d, &o[3], ignored ? 0 : 4, &i->b);
}

bool vm_decode_copy(struct vm_decoder *d, struct vm_inst *i) {
    const struct ptx_instruction *in = d->in;
    if (!vm_has_part(d, "async") || vm_has_part(d, "bulk") || vm_has_part(d, "mbarrier"))
        return vm_refuse(d, "of the asynchronous copies only plain cp.async is supported");
    if (vm_has_part(d, "commit_group") && !in->num_operands) {
        i->run = vm_copy_commit;
        return true;
    }
    if (vm_has_part(d, "wait_all") && !in->num_operands) {
        i->run = vm_copy_wait;
        i->imm = -1;
        return true;
    }
    if (vm_has_part(d, "wait_group") && in->num_operands == 1 &&
        in->operands[0].kind == PTX_OP_INT) {
        i->run = vm_copy_wait;
        i->imm = in->operands[0].value;
        return true;
    }
    return (vm_has_part(d, "ca") || vm_has_part(d, "cg")) && decode_issue(d, i);
}
