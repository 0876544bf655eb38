/* cable: two machines for tests, which are network namespaces of this one, each with its own
 * address, joined by a virtual cable that can be pulled. Needs root and iproute2. */
#pragma once

#include <stdbool.h>

#define CABLE_ADDRESS "10.99.77.1" /* machine a; b has 10.99.77.2 */

struct cable {
    char a[32], b[32]; /* names of the namespaces; they carry our pid */
};

#define NEEDS_CABLE(c)                                                                             \
    if (!cable_make(c))                                                                            \
    SKIP("needs the right to make network namespaces (root, iproute2)")

/* False where that is not permitted. */
bool cable_make(struct cable *c);
bool cable_pull(const struct cable *c);
/* Ends what still runs on both machines. */
void cable_remove(const struct cable *c);
