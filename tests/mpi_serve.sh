#!/bin/sh
# Runs moeserve as several processes under mpirun, for tests.
#
#   tests/mpi_serve.sh [OPTION ...]
#   PROCESSES (4), MOESERVE_BIN (build/moeserve)
#
# SIGTERM is passed on to the processes, of which the first one drains and leaves and the others
# follow it. (mpirun itself would kill them all after a second.)
set -eu
mpirun=$(command -v mpirun)
"$mpirun" --allow-run-as-root --oversubscribe --mca plm isolated --mca btl_vader_single_copy_mechanism none \
    -n "${PROCESSES:-4}" "${MOESERVE_BIN:-build/moeserve}" "$@" &
launcher=$!
# shellcheck disable=SC2046
trap 'kill -TERM $(cat "/proc/$launcher/task/$launcher/children") 2>/dev/null || true' TERM INT
status=0
wait "$launcher" || status=$?
# A wait that a signal ended says nothing of the launcher.
while kill -0 "$launcher" 2>/dev/null; do
    status=0
    wait "$launcher" || status=$?
done
exit "$status"
