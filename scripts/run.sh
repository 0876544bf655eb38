#!/bin/sh
# From a fresh clone to a running server on the bundled demo model, with a question asked.
#
#   scripts/run.sh           builds, serves on 127.0.0.1:7070, asks, and goes on serving
#   scripts/run.sh --once    the same, but stops after the answers
set -eu
case ${1:-} in
"" | --once) ;;
*)
    echo "usage: scripts/run.sh [--once]   (build/moeserve --help lists the server's options)" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
sh scripts/deps.sh run
exec make --no-print-directory -j"$(nproc)" run ONCE="${1:-}"
