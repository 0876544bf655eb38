#!/bin/sh
# Builds, tests and measures moeserve on this machine's NVIDIA GPUs, in at most nine minutes, and
# writes one report (Markdown and JSON). One GPU is enough: what several say to each other is then
# tested between ranks that share it. docs/GPU.md says what it measures.
#
#   scripts/gpu_check.sh [--out DIR] [--seconds N] [--only PART,...] [--list]
#
# Needs the CUDA Toolkit, a C and a C++ compiler and make; no network. Where libraries are missing it
# builds without them what can be (make BARE=1), and says what therefore does not run. Each part has
# a budget of seconds; a part that did not run, or not to its end, stands in the report with the
# reason. Changes no setting of the GPU. Exit status: 0, 1 when a part failed or the tests were cut off,
# 2 for wrong arguments.
set -eu
cd "$(dirname "$0")/.."

out=docs/gpu
seconds=540
only=
parts="device build tests program ranks allreduce kernels model-1b model-ranks model-mixtral memcheck racecheck"

usage() {
    echo "usage: scripts/gpu_check.sh [--out DIR] [--seconds N] [--only PART,...] [--list]" >&2
    echo "parts: $parts" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --list)
        echo "$parts"
        exit 0
        ;;
    --out | --seconds | --only)
        [ $# -ge 2 ] || usage
        case $1 in
        --out) out=$2 ;;
        --seconds) seconds=$2 ;;
        --only) only=$2 ;;
        esac
        shift 2
        ;;
    *) usage ;;
    esac
done
case $seconds in
'' | *[!0-9]*) usage ;;
esac
for p in $(echo "$only" | tr ',' ' '); do
    case " $parts " in
    *" $p "*) ;;
    *) usage ;;
    esac
done

die() {
    echo "gpu_check: $*" >&2
    exit 1
}

# ---- the machine ---------------------------------------------------------------------------------

deadline=$(($(date +%s) + seconds))
date=$(date -u +%Y-%m-%d)
jobs=$(getconf _NPROCESSORS_ONLN)
work=build/gpu-check/report
mkdir -p "$work"
rm -f "$work"/*

command -v nvcc >/dev/null 2>&1 || PATH=$PATH:/usr/local/cuda/bin
command -v nvcc >/dev/null 2>&1 || die "no nvcc: install the CUDA Toolkit, or put its bin into PATH"
for tool in gcc g++ make timeout; do
    command -v $tool >/dev/null 2>&1 || die "no $tool"
done
cuda_home=$(dirname "$(dirname "$(realpath "$(command -v nvcc)")")")
export PATH CUDA_DEVICE_ORDER=PCI_BUS_ID

# The stand-ins for CUDA's libraries run the script's own machinery without a GPU, on toy shapes. What
# they "measure" means nothing: it is marked and stays below build/.
stand_in=${GPU_CHECK_STAND_IN:-}
test_flags=--gtest_brief=1
load="--num-prompts 64 --random-input-len 64:128 --random-output-len 64"
kernel_flags=
small_model=configs/bench-moe-1b
model_flags="--context 512"
if [ -n "$stand_in" ]; then
    export LD_LIBRARY_PATH="$stand_in"
    out=build/gpu-check/stand-in
    test_flags="--gtest_brief=1 --gtest_filter=CudaPtx*:CudaNorm*:CudaAllreduce.Gathers*"
    load="--num-prompts 4 --random-input-len 8 --random-output-len 4"
    kernel_flags="--tiny --repeats 3"
    small_model=configs/demo-moe
    model_flags="--decode 2 --prefill 16 --repeats 3 --context 20"
fi

# What the CUDA runtime says: name, compute capability and bytes of the first GPU, number of GPUs; and
# the engines of all-reduces that are there.
cat >"$work/query.c" <<'END'
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#if __has_include(<nccl.h>) /* else moeserve is built without NCCL */
#define HAS_HEADER 1
#else
#define HAS_HEADER 0
#endif
int main(void) {
    struct cudaDeviceProp p;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess)
        e = cudaGetDeviceProperties(&p, 0);
    if (e != cudaSuccess || n == 0) {
        fprintf(stderr, "%s\n", e ? cudaGetErrorString(e) : "no device");
        return 1;
    }
    printf("%s\n%d\n%zu\n%d\n%s\n", p.name, 10 * p.major + p.minor, p.totalGlobalMem, n,
           HAS_HEADER && dlopen("libnccl.so.2", RTLD_NOW) ? "staged nccl" : "staged");
    return 0;
}
END
gcc -I"$cuda_home/include" -o "$work/query" "$work/query.c" -L"$cuda_home/lib64" \
    -Wl,--enable-new-dtags,-rpath,"$cuda_home/lib64" -lcudart -ldl || die "cannot build a CUDA program"
"$work/query" >"$work/query.out" || die "no GPU can be used"
name=$(sed -n 1p "$work/query.out")
arch=$(sed -n 2p "$work/query.out")
memory=$(sed -n 3p "$work/query.out")
gpus=$(sed -n 4p "$work/query.out")
[ "$gpus" -le 16 ] || gpus=16
engines=$(sed -n 5p "$work/query.out")
case $name in
"PTX machine"*) [ -n "$stand_in" ] || die "LD_LIBRARY_PATH leads to the stand-ins, not to a GPU" ;;
*) [ -z "$stand_in" ] || die "GPU_CHECK_STAND_IN is set, but this is a GPU" ;;
esac
[ "$arch" -ge 80 ] || die "$name has compute capability $arch, moeserve needs 80 or newer"
mkdir -p "$out"
slug=$(echo "$name" | tr 'A-Z' 'a-z' | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
report=$out/gpu_check-$slug-$date

# ---- libraries -----------------------------------------------------------------------------------

have_libraries=
if command -v pkg-config >/dev/null 2>&1 &&
    pkg-config --exists libuv jansson libpcre2-8 libutf8proc sentencepiece libssl libcrypto &&
    echo '#include <http_parser.h>' | g++ -x c -fsyntax-only - 2>/dev/null; then
    have_libraries=1
fi
if [ -n "${GPU_CHECK_BARE:-}" ]; then
    have_libraries=
fi
build=build/gpu-check/sm_$arch
[ -n "$have_libraries" ] || build=$build-bare
flags="CUDA=1 ARCHS=$arch BUILD=$build"
targets="$build/gpu_tests $build/bench_cuda $build/bench_model"
if [ -z "$have_libraries" ]; then
    flags="$flags BARE=1"
else
    targets="$targets $build/moeserve"
    echo '#include <gtest/gtest.h>' | g++ -x c++ -fsyntax-only - 2>/dev/null ||
        flags="$flags SHIM=shim_plain GTEST="
fi

# ---- parts ---------------------------------------------------------------------------------------

left() {
    echo $((deadline - $(date +%s)))
}

json_string() {
    printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g' | tr '\n\t' '  ')"
}

# note PART STATUS SECONDS TEXT: one line of the report's table
note() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$work/parts.tsv"
    printf '%s\t%s\t%s s\t%s\n' "$1" "$2" "$3" "$4"
    write_report
}

not_run() {
    note "$1" "not run" 0 "$2"
}

asked_for() {
    [ -z "$only" ] && return 0
    case ",$only," in
    *",$1,"*) return 0 ;;
    esac
    not_run "$1" "not asked for"
    return 1
}

# run PART BUDGET COMMAND: runs it within the budget and the time left, its output in PART.log
run() {
    part=$1 limit=$2 command=$3
    [ "$limit" -lt "$(left)" ] || limit=$(left)
    if [ "$limit" -lt 5 ]; then
        not_run "$part" "out of time"
        return 1
    fi
    printf '%s\n' "$command" >"$work/$part.command"
    began=$(date +%s)
    rc=0
    timeout -k 3 "$limit" sh -ec "$command" >"$work/$part.log" 2>&1 || rc=$?
    took=$(($(date +%s) - began))
    last=$(grep -e ' cases, ' -e 'SUMMARY: ' "$work/$part.log" | tail -n 1)
    last=$(echo "${last:-$(tail -n 1 "$work/$part.log")}" | cut -c 1-160)
    case $rc in
    0) note "$part" passed "$took" "$last" ;;
    124 | 137) note "$part" "cut off" "$took" "stopped after $limit s: $last" ;;
    *) note "$part" FAILED "$took" "exit status $rc: $last" ;;
    esac
    return $rc
}

# ---- the report ----------------------------------------------------------------------------------

# Lines of a log that a reader wants: all of a benchmark, the end of the rest.
log_lines() {
    case $1 in
    allreduce | kernels | model-* | device | ranks) cat "$work/$1.log" ;;
    *) tail -n 40 "$work/$1.log" ;;
    esac
}

write_markdown() {
    echo "# $name, $date"
    echo
    [ -z "$stand_in" ] || printf '**Run on a stand-in for a GPU: the figures mean nothing.**\n\n'
    echo "Written by \`scripts/gpu_check.sh\` at commit $commit$changed."
    [ -n "$have_libraries" ] || echo "Built with \`BARE=1\`: the server's libraries are not installed."
    printf '\n| part | result | s | |\n|---|---|---|---|\n'
    sed 's/|/\\|/g' "$work/parts.tsv" | awk -F'\t' '{print "| " $1 " | " $2 " | " $3 " | " $4 " |"}'
    for p in $parts; do
        [ -f "$work/$p.log" ] || continue
        printf '\n## %s\n\n```sh\n%s\n```\n\n```\n' "$p" "$(cat "$work/$p.command")"
        log_lines "$p"
        printf '```\n'
    done
}

write_json() {
    printf '{\n  "device": %s,\n  "date": "%s",\n' "$(json_string "$name")" "$date"
    printf '  "stand_in": %s,\n' "$([ -n "$stand_in" ] && echo true || echo false)"
    printf '  "commit": "%s",\n  "changed": %s,\n' "$commit" "$([ -n "$changed" ] && echo true || echo false)"
    printf '  "sm": %s,\n  "memory_bytes": %s,\n  "gpus": %s,\n  "parts": [' "$arch" "$memory" "$gpus"
    separator=
    while IFS="$(printf '\t')" read -r part status took text; do
        command=
        [ ! -f "$work/$part.command" ] || command=$(cat "$work/$part.command")
        printf '%s\n    {"part": "%s", "status": "%s", "seconds": %s, "text": %s, "command": %s}' \
            "$separator" "$part" "$status" "$took" "$(json_string "$text")" "$(json_string "$command")"
        separator=,
    done <"$work/parts.tsv"
    printf '\n  ]'
    for p in allreduce kernels model-1b model-mixtral $ranks_reports; do
        [ ! -s "$work/$p.json" ] || printf ',\n  "%s": %s' "$p" "$(cat "$work/$p.json")"
    done
    printf '\n}\n'
}

# After every part, so that a run that is ended from outside leaves what it has.
write_report() {
    write_markdown >"$report.md"
    write_json >"$report.json"
}

# Reads a git tree only if there is one: the check works from an archive too.
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
changed=
if [ "$commit" != unknown ] && [ -n "$(git status --porcelain --untracked-files=no 2>/dev/null)" ]; then
    changed=" with changes"
fi
: >"$work/parts.tsv"
ranks_reports=

# ---- device and build ----------------------------------------------------------------------------

smi="nvidia-smi --query-gpu"
if asked_for device; then
    run device 20 "date -u; uname -srm; nproc
nvcc --version | tail -n 2
cat $work/query.out
if command -v nvidia-smi >/dev/null; then
  nvidia-smi || true
  $smi=name,driver_version,compute_cap,memory.total,power.limit,pcie.link.gen.max,pcie.link.width.max --format=csv || true
  $smi=clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu --format=csv || true
  nvidia-smi topo -m || true
else
  echo no nvidia-smi here
fi" || true
fi

# Everything else needs it, so it is built whatever was asked for.
built=
if run build 200 "make -j$jobs $flags $targets"; then
    built=1
fi

# ---- tests ---------------------------------------------------------------------------------------

binary() {
    [ -n "$built" ] && return 0
    not_run "$1" "the build failed"
    return 1
}

# (Ranks that share a GPU wait for each other there: each stream needs a hardware queue of its own.)
if asked_for tests && binary tests; then
    run tests 120 "CUDA_DEVICE_MAX_CONNECTIONS=32 MOESERVE_BIN=$build/moeserve TEST_TIMEOUT_S=60 $build/gpu_tests $test_flags" || true
fi

# The program: an answer that the demo model is known to give, and the line protocol under load.
if asked_for program && binary program; then
    if [ -z "$have_libraries" ]; then
        not_run program "the server's libraries are not installed (scripts/deps.sh)"
    else
        run program 45 "$build/moeserve generate --gpus 1 -p '27+15=' --max-tokens 8 --temperature 0 | tee $work/answer
grep -q '^42' $work/answer
$build/moeserve bench $load --max-concurrency 16 -- --gpus 1" || true
    fi
fi

# ---- ranks ---------------------------------------------------------------------------------------

# Numbers of GPUs beyond one: 2, 4, 8, 16 and all of them.
counts=
for n in 2 4 8 16; do
    [ "$n" -gt "$gpus" ] || counts="$counts $n"
done
case " $counts " in
*" $gpus "*) ;;
*) [ "$gpus" -eq 1 ] || counts="$counts $gpus" ;;
esac

# One model on several ranks, which must give the answer that one gives; ranks that are lost must end a
# step and nothing else; ranks that hang must end the program.
cat >"$work/ranks.sh" <<END
generate() {
    echo "--- generate \$*" >&2
    timeout -k 3 40 $build/moeserve generate -p '27+15=' --max-tokens 8 --temperature 0 "\$@"
}
answers() {
    generate "\$@" >$work/answer || { echo "exit status \$?"; return 1; }
    cat $work/answer
    grep -q '^42' $work/answer
}
leaves() {
    rc=0
    generate "\$@" || rc=\$?
    echo "exit status \$rc"
    [ \$rc -eq 1 ]
}
set -e
answers --gpus 0,0 --allreduce staged
answers --gpus 0,0 --allreduce staged --allreduce-dtype f32
answers --gpus 0,0 --allreduce staged --allreduce-dtype fp8
answers --gpus 0,0 --allreduce staged --batch-invariant
answers --gpus 0,0 --allreduce staged --fault kill@1:3
leaves --gpus 0,0 --allreduce staged --fault stall@1:3 --comm-timeout 3
for n in $counts; do
    for engine in $engines; do
        answers --gpus \$n --allreduce \$engine
    done
    answers --gpus \$n
    answers --gpus \$n --fault kill@1:3
    leaves --gpus \$n --fault stall@1:3 --comm-timeout 10
done
echo "all answers are right; ranks were lost and none was waited for in vain"
END

if asked_for ranks && binary ranks; then
    if [ -z "$have_libraries" ]; then
        not_run ranks "the server's libraries are not installed (scripts/deps.sh)"
    else
        run ranks $((45 + 60 * $(echo $counts | wc -w))) "sh $work/ranks.sh" || true
    fi
fi

# ---- measurements --------------------------------------------------------------------------------

# The built-in all-reduce through pinned host memory, of ranks that are groups of blocks of one grid.
if asked_for allreduce && binary allreduce; then
    run allreduce 40 "$build/bench_cuda --seconds 30 $kernel_flags --filter allreduce --json $work/allreduce.json" || true
fi

if asked_for kernels && binary kernels; then
    run kernels 120 "$smi=clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv || true
$build/bench_cuda --seconds 110 $kernel_flags --json $work/kernels.json
$smi=clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv || true" || true
fi

model_bench() {
    echo "timeout -k 3 $2 $build/bench_model --gpus $4 --threads $jobs --model $1 --seconds $2 $model_flags --json $work/$3.json"
}

if asked_for model-1b && binary model-1b; then
    run model-1b 45 "$(model_bench $small_model 40 model-1b 1)" || true
fi

# Two ranks on one GPU: what they cost each other, not what a second GPU would gain.
if asked_for model-ranks && binary model-ranks; then
    ranks_reports=ranks-0-0
    command="$(model_bench $small_model 40 ranks-0-0 0,0) --allreduce staged"
    for n in $counts; do
        for engine in $engines; do
            ranks_reports="$ranks_reports ranks-$n-$engine"
            command="$command
$(model_bench $small_model 30 "ranks-$n-$engine" "$n") --allreduce $engine"
        done
    done
    run model-ranks $((45 + 65 * $(echo $counts | wc -w))) "$command" || true
fi

if asked_for model-mixtral && binary model-mixtral; then
    if [ "$memory" -lt 60000000000 ]; then
        not_run model-mixtral "46.7 GB of weights and 64 sequences want 60 GB of memory, the GPU has $((memory / 1000000000))"
    else
        run model-mixtral 140 "$(model_bench configs/bench-mixtral-8x7b-fp8 130 model-mixtral 1)" || true
    fi
fi

# ---- sanitizers ----------------------------------------------------------------------------------

sanitize() {
    part=$1
    if ! command -v compute-sanitizer >/dev/null 2>&1; then
        not_run "$part" "compute-sanitizer is not installed"
        return 0
    fi
    command="compute-sanitizer --tool $part --error-exitcode 9 $build/gpu_tests --gtest_filter='$2'"
    [ "$(left)" -ge 10 ] || { not_run "$part" "out of time" && return 0; }
    printf '%s\n' "$command" >"$work/$part.command"
    if timeout 20 compute-sanitizer --tool "$part" "$work/query" 2>&1 | grep -q 'not supported'; then
        not_run "$part" "compute-sanitizer does not support the device as it is set up here"
        return 0
    fi
    run "$part" 60 "TEST_TIMEOUT_S=50 $command" || true
}

if asked_for memcheck && binary memcheck; then
    sanitize memcheck '-CudaModel*:CudaEngine*:CudaRanks*:CudaAllreduce*:CudaNccl*:CudaProgram*:CudaMoe.Many*:CudaSample.ManyDraws*:CudaAttention.ASplit*'
fi
if asked_for racecheck && binary racecheck; then
    sanitize racecheck 'CudaMoe.FewTokens*:CudaDense.BitsDepend*:CudaAttention.Unsplit*:CudaRouter.Agrees*:CudaNorm.AllOptions*:CudaSample.Several*:CudaRope.*:CudaPtx.*'
fi

# ---- result --------------------------------------------------------------------------------------

echo "gpu_check: $report.md and $report.json, $((seconds - $(left))) s"
! grep -q -e '	FAILED	' -e '^\(build\|tests\|program\|ranks\)	cut off	' "$work/parts.tsv"
