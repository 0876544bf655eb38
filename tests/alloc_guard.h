/* alloc_guard: the test programs' malloc, which stops at any allocation inside a step. */
#pragma once

/* For good, where a library that is not ours to change allocates: a GPU's driver. */
void alloc_guard_off(void);
