/* The GPU architectures that the machine stands in for (CUDA C++ Programming Guide, "Technical
 * specifications per compute capability"). */
#include "tests/ptxvm/machine.h"

const struct vm_arch *vm_arch_find(int32_t sm) {
    static const struct vm_arch archs[] = {
        {80, "PTX machine sm_80", 163 << 10, 164 << 10, 2048, 4},
        {86, "PTX machine sm_86", 99 << 10, 100 << 10, 1536, 4},
        {89, "PTX machine sm_89", 99 << 10, 100 << 10, 1536, 4},
        {90, "PTX machine sm_90", 227 << 10, 228 << 10, 2048, 4},
        {120, "PTX machine sm_120", 99 << 10, 100 << 10, 1536, 4},
    };
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (archs[i].sm == sm)
            return &archs[i];
    return NULL;
}
