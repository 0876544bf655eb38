/* golden_program: a golden model as a folder that the program can load. */
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A scratch folder with links to the files of a model of tests/data/golden, and a tokenizer of one
 * token a byte, which those have not. The same folder when called again. */
void golden_program_dir(const char *name, char *dir, size_t size);

#ifdef __cplusplus
}
#endif
