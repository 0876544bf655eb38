#!/bin/sh
# What every CUDA kernel takes of an SM: registers for each architecture, stack, spills, shared memory.
#
#   scripts/cuda_report.sh [-t TRACE] LOG...
#
# LOG is what ptxas -v said of one source (the Makefile keeps it beside the object). TRACE is what the
# PTX machine printed with PTXVM_TRACE=1: dynamic shared memory is a launch argument, so the largest
# launch of the trace stands for it, and "-" for kernels that it does not have.
#
# A fault is a stack frame, a spill, or more shared memory than a block of that architecture can
# have. Faults are listed first, and make the exit status 1.
set -eu

trace=/dev/null
if [ "${1:-}" = -t ]; then
    trace=$2
    shift 2
fi
if [ $# -eq 0 ]; then
    echo "cuda-report: no kernels were built. It needs nvcc (CUDA 13) in PATH: make cuda-report" >&2
    exit 1
fi
for log; do
    if [ ! -f "$log" ]; then
        echo "cuda-report: $log is missing: remove ${log%.ptxas}.o and run make cuda-report" >&2
        exit 1
    fi
done
if ! command -v c++filt >/dev/null 2>&1; then
    echo "cuda-report: c++filt is missing (package binutils)" >&2
    exit 1
fi

# Both inputs name a kernel by its whole signature; the report keeps the name and its template
# arguments, the latter without their types: f_kernel<1, true>.
{
    cat "$trace"
    echo "end of trace"
    cat "$@" | c++filt
} | awk '
function short(signature) {
    gsub(/\([a-z_]+\)/, "", signature)   # types of template arguments: (weight_kind)1
    sub(/\(.*/, "", signature)           # the parameters
    sub(/^void /, "", signature)
    return signature
}
# The number before `unit` in the line, 0 where there is none.
function amount(unit) {
    return match($0, "[0-9]+ " unit) ? substr($0, RSTART, RLENGTH) + 0 : 0
}
function fault(text) {
    faults[++num_faults] = sprintf("sm_%-4s %s: %s", arch, name, text)
}
function largest(table, value) {
    if (!(name in table) || value > table[name])
        table[name] = value
}
BEGIN {
    limit[80] = 163; limit[86] = 99; limit[89] = 99; limit[90] = 227; limit[120] = 99
}
tracing && /^end of trace$/ { tracing = 0; next }
tracing {
    if (!/<<<.*>>>/)
        next
    name = $0
    sub(/^ptxvm: device [0-9]+ /, "", name)
    sub(/ <<<.*/, "", name)
    name = short(name)
    bytes = $0
    sub(/>>>.*/, "", bytes)
    sub(/.*, /, "", bytes)
    largest(dynamic, bytes + 0)
    next
}
/Compiling entry function/ {
    split($0, part, "\047")
    name = short(part[2])
    arch = part[4]
    sub(/^sm_/, "", arch)
    if (!(name in known)) {
        known[name] = 1
        names[++num_names] = name
        width = length(name) > width ? length(name) : width
    }
    if (!(arch in archs)) {
        archs[arch] = 1
        order[++num_archs] = arch
    }
}
/bytes stack frame/ {
    frame = amount("bytes stack frame")
    spill = amount("bytes spill stores") + amount("bytes spill loads")
    largest(stack, frame)
    largest(spills, spill)
    if (frame || spill)
        fault(sprintf("%d bytes of stack, %d bytes of spill loads and stores", frame, spill))
}
/: Used [0-9]+ registers/ {
    registers[name, arch] = amount("registers")
    smem = amount("bytes smem")
    largest(static_shared, smem)
    all = smem + (name in dynamic ? dynamic[name] : 0)
    if (arch in limit && all > limit[arch] * 1024)
        fault(sprintf("%d bytes of shared memory, of %d KB", all, limit[arch]))
}
END {
    for (i = 1; i <= num_faults; i++)
        print faults[i]
    if (num_faults)
        print ""
    printf "%-*s ", width, "kernel: registers"
    for (a = 1; a <= num_archs; a++)
        printf "%7s", "sm_" order[a]
    printf "%7s%7s%8s%8s\n", "stack", "spill", "static", "dynamic"
    for (i = 1; i <= num_names; i++) {
        name = names[i]
        printf "%-*s ", width, name
        for (a = 1; a <= num_archs; a++)
            printf "%7s", ((name, order[a]) in registers) ? registers[name, order[a]] : "-"
        printf "%7d%7d%8d%8s\n", stack[name], spills[name], static_shared[name],
            (name in dynamic) ? dynamic[name] : "-"
    }
    printf "\nkernels %d, architectures %d, faults %d; bytes are the largest of all architectures\n",
        num_names, num_archs, num_faults
    exit num_faults > 0
}
' tracing=1 -
