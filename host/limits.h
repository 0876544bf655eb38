/* limits: raises what the system lets this process have, and says so.
 *
 * A soft limit is raised as far as the hard one allows; raising that one is the administrator's,
 * and the warning says how. Before threads and sockets are there.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* So many files are to be open at once; `why` says for what, or is the option that asks for them.
 */
void limits_raise_files(uint64_t need, const char *why);

/* As much locked memory as there may be: network cards that NCCL uses between machines lock what
 * they read. `wanted`: warn when that is not all. */
void limits_raise_locked_memory(bool wanted);

#ifdef __cplusplus
}
#endif
