#!/bin/sh
# From a fresh clone to every test passed. No GPU needed.
set -eu
cd "$(dirname "$0")/.."
sh scripts/deps.sh test
exec make --no-print-directory -j"$(nproc)" test
