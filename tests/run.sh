#!/bin/sh
# Runs test programs and adds up their closing lines ("N passed, M failed, K skipped").
#
#   tests/run.sh LOG COMMAND...                      runs one; its output goes to LOG and, at its end, to
#                                                    standard output
#   tests/run.sh sum [-k REASON "FILE..."] LOG...    the closing line of all; the tests in the FILEs
#                                                    could not be built, for REASON. Exit status 1
#                                                    after a failure
#
# A program that ends without its closing line, or with a status that its counts do not explain, is
# one failed test.
set -eu

if [ "$1" != sum ]; then
    log=$1
    shift
    mkdir -p "$(dirname "$log")"
    status=0
    "$@" >"$log" 2>&1 || status=$?
    line=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$log" | tail -n 1)
    # shellcheck disable=SC2086
    set -- ${line:-none 0 0}
    if [ "$1" = none ]; then
        echo "ended without a closing line, with status $status" >>"$log"
        set -- 0 1 0
    elif [ "$status" -ne 0 ] && [ "$2" -eq 0 ] && [ $(($1 + $3)) -gt 0 ]; then
        echo "ended with status $status" >>"$log"
        set -- "$1" 1 "$3"
    fi
    echo "$*" >"$log.counts"
    # The programs' own closing lines get their name, so that only the sum stands alone.
    name=$(basename "$log" .log)
    sed "s/^\([0-9]* passed, [0-9]* failed, [0-9]* skipped\)\$/$name: \1/" "$log"
    exit 0
fi

shift
skipped=0
if [ "$1" = -k ]; then
    # shellcheck disable=SC2086
    skipped=$(cat $3 | grep -c '^TEST(')
    echo "skipped: the $skipped tests of the CUDA kernels and of the machine that runs them: $2"
    shift 3
fi
passed=0 failed=0
for log; do
    read -r p f s <"$log.counts"
    [ "$f" -eq 0 ] || echo "failures in: $log"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
if [ $((passed + failed)) -eq 0 ]; then
    echo "no test was run"
    failed=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
