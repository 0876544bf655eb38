#!/bin/sh
# Installs what building, running and testing moeserve needs, and only what is missing.
#
#   scripts/deps.sh          to build and run
#   scripts/deps.sh test     and to test
#   scripts/deps.sh browser  and Debian's headless Chromium (64 MB to fetch), without which the tests of the
#                            page at `/` are skipped; elsewhere PAGE_BROWSER may name any Chromium
#   scripts/deps.sh dev      and for formatting, clang builds and fuzzing
#
# For Debian 12 and Ubuntu 22.04 or newer. Uses sudo when not root. Elsewhere it prints the list of
# libraries to install by hand.
set -eu

run="gcc g++ make libc6-dev pkg-config libuv1-dev libjansson-dev libpcre2-dev libsentencepiece-dev libutf8proc-dev libssl-dev libhttp-parser-dev netcat-openbsd ca-certificates"
test="libgtest-dev libsimde-dev libopenmpi-dev openmpi-bin iproute2"
browser="python3 chromium-headless-shell fonts-dejavu-core"
dev="clang clang-format"

packages=$run
case ${1:-run} in
run) ;;
test) packages="$run $test" ;;
browser) packages="$run $test $browser" ;;
dev) packages="$run $test $dev" ;;
*)
    echo "usage: scripts/deps.sh [run|test|browser|dev]" >&2
    exit 2
    ;;
esac

if ! command -v apt-get >/dev/null 2>&1; then
    echo "moeserve: this is not Debian or Ubuntu. Install the equivalents of: $packages" >&2
    exit 1
fi

# Those of the arguments that are not installed, each behind a blank.
missing_of() {
    for p in "$@"; do
        case $(dpkg-query -W -f='${Status}' "$p" 2>/dev/null || true) in
        *"ok installed"*) ;;
        *) printf ' %s' "$p" ;;
        esac
    done
}

# clang's sanitizers are in a package that carries its version. Nothing is known of it before
# `apt-get update` has run once.
clang_runtime() {
    version=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' || true)
    [ "${1:-run}" != dev ] || echo "${version:+libclang-rt-$version-dev}"
}

# shellcheck disable=SC2046,SC2086
missing=$(missing_of $packages $(clang_runtime "$@"))
if [ -z "$missing" ]; then
    exit 0
fi

sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "moeserve: as root, run: apt-get install$missing" >&2
        exit 1
    fi
    sudo=sudo
fi
echo "moeserve: installing (compiler, libraries and tools that moeserve is built with):$missing"
# A list of packages that is too old names files that no longer exist, so it is renewed first.
$sudo apt-get update -q
# shellcheck disable=SC2046,SC2086
missing=$(missing_of $packages $(clang_runtime "$@"))
# sudo hands no variables on, so that it is told within.
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
