/* group_mpi_none: stands in for group_mpi.c in builds without MPI. */
#include "host/group_internal.h"

const struct group_engine *group_mpi_engine(void) {
    return NULL;
}
