/* decode: from PTX instructions to functions over registers.
 *
 * A kernel is linked with the functions that it calls into one array of instructions; callees come
 * first, so that the order by lowest program counter runs a call before what follows it. Functions
 * do not recurse, which gives each of them a fixed place for its registers and its frame.
 *
 * A family of instructions (exec_*.c) offers a table of vm_opcode rows: the opcode without its
 * modifiers, the widths of its operands and its handler. What does not fit a row has a decoder of
 * its own (decode_*.c).
 */
#pragma once

#include "tests/ptxvm/vm.h"

enum { VM_MAX_PARTS = 16 };

/* The modifiers that rows leave out. */
enum vm_round { VM_ROUND_NEAREST, VM_ROUND_ZERO, VM_ROUND_DOWN, VM_ROUND_UP };
/* vm_inst.type of what vm_modified_half runs. */
enum vm_half { VM_F16, VM_F16X2, VM_BF16, VM_BF16X2 };

struct vm_opcode {
    const char *name; /* "add.s32" */
    /* Operand widths, destination first: h 16, w 32, x 64 bits, p predicate. */
    const char *operands;
    vm_exec run;
};
/* Tables end with a row without a name. */
extern const struct vm_opcode vm_int_opcodes[], vm_bit_opcodes[], vm_float_opcodes[],
    vm_half_opcodes[];
/* The handlers of setp and set, by type and comparison; NULL when there is none. */
vm_exec vm_compare_handler(struct ptx_text type, struct ptx_text comparison);

struct vm_frame { /* a function inside a kernel */
    const struct ptx_function *f;
    uint32_t first_inst;
    uint32_t *registers; /* [num_registers] offsets in the register file */
    uint32_t *vars;      /* [num_vars] offsets in the local frame */
    uint32_t return_pc;  /* register with the lane's return address */
};

struct vm_decoder {
    struct vm_module *module;
    struct vm_kernel *k;
    struct vm_frame *frames;
    int32_t num_frames, cap_frames, cap_constants, cap_shared;
    struct vm_frame *frame; /* the one being decoded */
    const struct ptx_instruction *in;
    struct ptx_text parts[VM_MAX_PARTS]; /* of the opcode, without dots */
    int32_t num_parts;
    uint32_t sink[4]; /* registers that take what nobody reads: 64, 32, 16 bits, predicate */
    uint32_t true_pred;
    const char *problem;    /* why the last instruction was refused; NULL: not known at all */
    int32_t *constant_hash; /* [CONSTANT_HASH], then [num_constants] chain */
    int32_t *constant_chain;
};

bool vm_has_part(const struct vm_decoder *d, const char *part);
/* Register of an operand read or written with this width in bytes (0: predicate); false when it
 * does not fit. Immediates and names become constants. */
bool vm_operand(struct vm_decoder *d, const struct ptx_operand *o, uint32_t bytes,
                uint32_t *offset);
/* A destination: a register or '_'. */
bool vm_destination(struct vm_decoder *d, const struct ptx_operand *o, uint32_t bytes,
                    uint32_t *offset);
/* Register width of an operand in bytes, 0 predicate, -1 when it is not a register. */
int32_t vm_operand_bytes(const struct vm_decoder *d, const struct ptx_operand *o);
bool vm_address(struct vm_decoder *d, const struct ptx_operand *o, struct vm_inst *i);
uint32_t vm_constant(struct vm_decoder *d, uint64_t value, const struct ptx_variable *var,
                     uint32_t bytes);
uint32_t vm_special_register(struct vm_decoder *d, enum vm_special s, uint32_t bytes);
uint32_t *vm_more(struct vm_decoder *d, int32_t count);
bool vm_refuse(struct vm_decoder *d, const char *problem);
/* Offset of a local or call-parameter variable in the thread's frame. */
bool vm_local_offset(struct vm_decoder *d, const struct ptx_variable *v, uint32_t *offset);
bool vm_is_kernel_param(const struct vm_decoder *d, const struct ptx_variable *v, size_t *offset);
/* Gives the registers of a function their places in the register file (registers.c). */
void vm_allocate_registers(struct vm_decoder *d, struct vm_frame *fr);
/* Takes room in the register file: 32 lanes of 8, 4 or 2 bytes, or a predicate (0). */
uint32_t vm_take_register(struct vm_kernel *k, uint32_t lane_bytes);
struct vm_frame *vm_find_frame(struct vm_decoder *d, const struct ptx_function *f);

/* Decoders of the families; each says whether it took the instruction. */
bool vm_decode_memory(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_move(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_convert(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_compare(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_control(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_warp(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_matrix(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_copy(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_atomic(struct vm_decoder *d, struct vm_inst *i);
bool vm_decode_table(struct vm_decoder *d, struct vm_inst *i);

/* Decodes a kernel; NULL with the reason in error. */
struct vm_kernel *vm_decode_kernel(struct vm_module *m, const struct ptx_function *f, char *error,
                                   size_t error_bytes);

/* Runs base with flushed inputs, another rounding mode, or a clamped result. */
void vm_modified_f32(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
void vm_modified_f64(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
void vm_modified_half(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
