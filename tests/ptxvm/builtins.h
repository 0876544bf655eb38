/* builtins: functions that the CUDA driver supplies to device code: vprintf, __assertfail. */
#pragma once

#include "tests/ptxvm/vm.h"

/* A call: i->more holds the offsets of the arguments in the thread's frame, then that of the
 * result, [i->vec + 1]; UINT32_MAX: the result is not asked for. NULL when there is no such
 * function; *num_args: how many arguments it takes. */
vm_exec vm_builtin(struct ptx_text name, int32_t *num_args);
