/* Modules: PTX text and its decoded kernels, and the memory of its variables on each device. */
#include <pthread.h>
#include <string.h>

#include "tests/ptxvm/decode.h"
#include "tests/ptxvm/rt_alloc.h"

/* ---- loading
 * --------------------------------------------------------------------------------------- */

struct vm_module *vm_module_open(const char *ptx, size_t len, char *error, size_t error_bytes) {
    struct vm_module *m = rt_calloc(sizeof *m);
    pthread_mutex_t *lock = rt_calloc(sizeof *lock);
    pthread_mutex_init(lock, NULL);
    m->lock = lock;
    m->ptx = ptx_parse(ptx, len, error, error_bytes);
    if (m->ptx) {
        m->kernels = ptx_alloc(&m->arena, (size_t)m->ptx->num_functions * sizeof *m->kernels + 1);
        return m;
    }
    vm_module_unload(m);
    return NULL;
}

static struct vm_kernel *find_kernel(const struct vm_module *m, struct ptx_text name) {
    for (int32_t i = 0; i < m->num_kernels; i++)
        if (ptx_text_is(name, m->kernels[i]->name))
            return m->kernels[i];
    return NULL;
}

/* The lock is held. */
static struct vm_kernel *prepare(struct vm_module *m, struct ptx_text name, char *error,
                                 size_t error_bytes) {
    struct vm_kernel *k = find_kernel(m, name);
    struct ptx_function *f = k ? NULL : ptx_find_function(m->ptx, name);
    if (!f || !f->is_entry || !f->has_body)
        return k;
    if (ptx_parse_kernel(m->ptx, f, error, error_bytes))
        k = vm_decode_kernel(m, f, error, error_bytes);
    if (k)
        m->kernels[m->num_kernels++] = k;
    return k;
}

const struct vm_kernel *vm_module_prepare(struct vm_module *m, const char *name, char *error,
                                          size_t error_bytes) {
    error[0] = 0;
    pthread_mutex_lock(m->lock);
    const struct vm_kernel *k =
        prepare(m, (struct ptx_text){name, (int32_t)strlen(name)}, error, error_bytes);
    pthread_mutex_unlock(m->lock);
    return k;
}

struct vm_module *vm_module_load(const char *ptx, size_t len, char *error, size_t error_bytes) {
    struct vm_module *m = vm_module_open(ptx, len, error, error_bytes);
    for (int32_t i = 0; m && i < m->ptx->num_functions; i++) {
        const struct ptx_function *f = m->ptx->functions[i];
        if (f->is_entry && f->has_body && !prepare(m, f->name, error, error_bytes)) {
            vm_module_unload(m);
            m = NULL;
        }
    }
    return m;
}

void vm_module_unload(struct vm_module *m) {
    if (!m)
        return;
    for (int32_t d = 0; d < VM_MAX_DEVICES; d++)
        for (int32_t i = 0; m->storage[d] && i < m->ptx->num_vars; i++)
            if (m->storage[d][i])
                vm_free(m->storage[d][i]);
    for (int32_t i = 0; i < m->num_kernels; i++) {
        rt_free(m->kernels[i]->constants);
        rt_free(m->kernels[i]->shared);
    }
    ptx_module_free(m->ptx);
    ptx_arena_free(&m->arena);
    pthread_mutex_destroy(m->lock);
    rt_free(m->lock);
    rt_free(m);
}

/* ---- kernels
 * --------------------------------------------------------------------------------------- */

const struct vm_kernel *vm_module_kernel(const struct vm_module *m, const char *name) {
    pthread_mutex_lock(m->lock);
    const struct vm_kernel *k = find_kernel(m, (struct ptx_text){name, (int32_t)strlen(name)});
    pthread_mutex_unlock(m->lock);
    return k;
}

struct vm_kernel_info vm_kernel_info(const struct vm_kernel *k) {
    return (struct vm_kernel_info){.name = k->name,
                                   .max_threads = k->max_threads,
                                   .static_shared = k->static_shared,
                                   .local_bytes = k->local_bytes,
                                   .num_params = k->num_params,
                                   .param_offset = k->param_offset,
                                   .param_bytes = k->param_bytes,
                                   .params_bytes = k->params_bytes};
}

/* ---- variables
 * ------------------------------------------------------------------------------------- */

static bool has_memory(const struct ptx_variable *v) {
    return (v->space == PTX_GLOBAL || v->space == PTX_CONST) && !v->external && v->bytes > 0;
}

static int32_t find_variable(const struct vm_module *m, struct ptx_text name) {
    for (int32_t i = 0; i < m->ptx->num_vars; i++)
        if (ptx_text_same(m->ptx->vars[i]->name, name) && has_memory(m->ptx->vars[i]))
            return i;
    return -1;
}

/* Initialisers that are addresses need every variable to have its place first. */
static void relocate(const struct vm_module *m, uint8_t *const *storage, int32_t i) {
    const struct ptx_variable *v = m->ptx->vars[i];
    for (int32_t r = 0; r < v->num_relocations; r++) {
        const struct ptx_relocation *rel = &v->relocations[r];
        int32_t to = find_variable(m, rel->name);
        uint64_t address = to >= 0 ? (uintptr_t)storage[to] + (uint64_t)rel->addend : 0;
        memcpy(storage[i] + rel->offset, &address, sizeof address);
    }
}

static void initialise(const struct vm_module *m, uint8_t *const *storage) {
    const struct ptx_module *ptx = m->ptx;
    for (int32_t i = 0; i < ptx->num_vars; i++) {
        const struct ptx_variable *v = ptx->vars[i];
        if (!storage[i])
            continue;
        if (v->init)
            memcpy(storage[i], v->init, (size_t)v->bytes);
        else
            memset(storage[i], 0, (size_t)v->bytes);
        relocate(m, storage, i);
    }
}

/* NULL when the host has no more memory. */
static uint8_t **allocate(struct vm_module *m, int32_t device) {
    const struct ptx_module *ptx = m->ptx;
    uint8_t **storage = ptx_alloc(&m->arena, (size_t)ptx->num_vars * sizeof *storage + 1);
    for (int32_t i = 0; i < ptx->num_vars; i++) {
        const struct ptx_variable *v = ptx->vars[i];
        if (!has_memory(v))
            continue;
        const char *label = ptx_text_copy(&m->arena, vm_variable_name(v->name));
        storage[i] = vm_alloc(device, (size_t)v->bytes, VM_GLOBAL, label);
        if (!storage[i])
            return NULL;
    }
    initialise(m, storage);
    return storage;
}

static uint8_t **device_storage(const struct vm_module *constant, int32_t device) {
    /* Only what the lock guards is changed. */
    struct vm_module *m = (struct vm_module *)(uintptr_t)constant;
    pthread_mutex_lock(m->lock);
    if (!m->storage[device])
        m->storage[device] = allocate(m, device);
    uint8_t **storage = m->storage[device];
    pthread_mutex_unlock(m->lock);
    return storage;
}

void vm_module_reset(struct vm_module *m, int32_t device) {
    pthread_mutex_lock(m->lock);
    if (m->storage[device])
        initialise(m, m->storage[device]);
    pthread_mutex_unlock(m->lock);
}

uint8_t *vm_variable_address(const struct vm_module *m, const struct ptx_variable *v,
                             int32_t device) {
    uint8_t **storage = device_storage(m, device);
    for (int32_t i = 0; storage && i < m->ptx->num_vars; i++)
        if (m->ptx->vars[i] == v)
            return storage[i];
    return NULL;
}

void *vm_module_symbol(struct vm_module *m, const char *name, int32_t device, size_t *bytes) {
    struct ptx_text text = {name, (int32_t)strlen(name)};
    int32_t i = find_variable(m, text);
    if (i < 0)
        return NULL;
    uint8_t **storage = device_storage(m, device);
    *bytes = (size_t)m->ptx->vars[i]->bytes;
    return storage ? storage[i] : NULL;
}
