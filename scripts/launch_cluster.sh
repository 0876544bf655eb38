#!/bin/sh
# Starts one moeserve process on each of several machines by ssh, as one group over TCP, and ends all
# of them when one ends. docs/CLUSTER.md says what the machines need, and knows other ways.
#
#   scripts/launch_cluster.sh [options] HOST... -- COMMAND...
#
#   --hosts FILE     hosts from a file, one a line; # begins a comment
#   --addr ADDRESS   where process 0 listens, an address of the first host (default: its name)
#   --port N         its port (default 29500)
#   --dir DIR        where COMMAND runs on each host (default: the current folder's path)
#   --env NAME=VALUE a variable for all processes, e.g. NCCL_SOCKET_IFNAME=eth0; may be repeated
#   --ssh COMMAND    what reaches a host (default: ssh -o BatchMode=yes)
#   --grace SECONDS  how long processes have to end in order (default 15)
#   --print          starts nothing: prints the lines for ssh, mpirun and srun
#   --help
#
# The first host runs process 0, which has the server's port. Each line of output begins with its
# host. MOESERVE_GROUP_SECRET, where it is set, goes to all processes, over ssh's connection and not
# through command lines. The exit status is that of the process that ended first.
set -eu

die() {
    echo "launch_cluster: $*" >&2
    exit 2
}

hosts=
addr=
port=29500
dir=$(pwd)
ssh="ssh -o BatchMode=yes"
grace=15
print=
settings= # lines of "export NAME='VALUE'"

# Its argument as one word of a shell command.
quote() {
    printf "'"
    printf '%s' "$1" | sed "s/'/'\\\\''/g"
    printf "'"
}

while [ $# -gt 0 ]; do
    case $1 in
    --help)
        sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --print) print=1 ;;
    --hosts | --addr | --port | --dir | --env | --ssh | --grace)
        [ $# -ge 2 ] || die "$1 needs a value"
        case $1 in
        --hosts)
            [ -r "$2" ] || die "--hosts $2: cannot be read"
            hosts="$hosts $(sed 's/#.*//' "$2" | tr -s ' \t\n' ' ')"
            ;;
        --addr) addr=$2 ;;
        --port) port=$2 ;;
        --dir) dir=$2 ;;
        --env)
            case $2 in
            [A-Za-z_]*=*) ;;
            *) die "--env $2: expected NAME=VALUE" ;;
            esac
            name=${2%%=*}
            case $name in
            *[!A-Za-z0-9_]*) die "--env $2: expected NAME=VALUE" ;;
            esac
            settings="${settings}export $name=$(quote "${2#*=}")
"
            ;;
        --ssh) ssh=$2 ;;
        --grace) grace=$2 ;;
        esac
        shift
        ;;
    --)
        shift
        break
        ;;
    -*) die "there is no option $1 (--help)" ;;
    *) hosts="$hosts $1" ;;
    esac
    shift
done

[ $# -gt 0 ] || die "no command after -- (--help)"
for number in "$port" "$grace"; do
    case $number in
    '' | *[!0-9]*) die "'$number': expected a number" ;;
    esac
done
size=0
for host in $hosts; do
    [ $size -gt 0 ] || first=$host
    size=$((size + 1))
done
[ $size -gt 0 ] || die "no hosts (--help)"
: "${addr:=${first#*@}}"

words=
for word; do
    words="$words $(quote "$word")"
done
command=${words# }

# ---- printing ------------------------------------------------------------------------------------

# Variables that make the process on a host the one with this number.
group_of() {
    echo "RANK=$1 WORLD_SIZE=$size MASTER_ADDR=$addr MASTER_PORT=$port"
}

if [ -n "$print" ]; then
    inline=$(printf '%s' "$settings" | sed 's/^export //' | tr '\n' ' ')
    exports=$(printf '%s' "$settings" | sed "s/^export \([^=]*\)=.*/ -x \1/" | tr -d '\n')
    list=$(for host in $hosts; do printf ',%s' "${host#*@}"; done)
    list=${list#,}
    place=$(quote "$dir")
    echo "# by hand, on each host:"
    rank=0
    for host in $hosts; do
        printf '%s\n' "$host: cd $place && env $inline$(group_of $rank) $command"
        rank=$((rank + 1))
    done
    echo "# by Open MPI:"
    printf '%s\n' "${inline:+env $inline}mpirun --host $(echo "$list" | sed 's/,/:1,/g'):1 -n $size --bind-to none --wdir $place$exports $command"
    echo "# by Slurm:"
    printf '%s\n' "${inline:+env $inline}srun --nodelist=$list --nodes=$size --ntasks-per-node=1 --mpi=pmix --chdir=$place $command"
    exit 0
fi

# ---- running -------------------------------------------------------------------------------------

work=$(mktemp -d)
mkfifo "$work/ended"
holders=
runners=

# What the shell on a host runs. It reads this from its standard input, which then stays open as
# long as we live: its end is what ends the process there, whatever happens to us.
remote_script() {
    printf '%s' "$settings"
    if [ -n "${MOESERVE_GROUP_SECRET:-}" ]; then
        printf 'export MOESERVE_GROUP_SECRET=%s\n' "$(quote "$MOESERVE_GROUP_SECRET")"
    fi
    printf '%s\n' \
        "export $(group_of "$1")" \
        "exec 3<&0" \
        "cd $(quote "$dir") || exit 2" \
        "$command </dev/null 3<&- & pid=\$!" \
        "{ cat <&3; kill \$pid; n=0; while kill -0 \$pid; do sleep 1; n=\$((n + 1)); [ \$n -lt $grace ] || kill -9 \$pid; done; } >/dev/null 2>&1 &" \
        "exec 3<&-; wait \$pid; exit \$?"
}

run_on() {
    rank=$1 host=$2
    {
        status=0
        # shellcheck disable=SC2086
        $ssh "$host" sh -s <"$work/in.$rank" 2>&1 &
        echo $! >"$work/ssh.$rank"
        wait $! || status=$?
        echo "$rank $host $status" >"$work/ended"
    } | while IFS= read -r line || [ -n "$line" ]; do
        printf '%s: %s\n' "$host" "$line"
    done
}

# Those that hold on to their output for longer than their hosts give them.
kill_late() {
    n=0
    while [ $n -le $((grace + 2)) ]; do
        sleep 1
        n=$((n + 1))
    done
    # shellcheck disable=SC2046,SC2086
    kill -9 $(cat "$work"/ssh.*) $runners
}

end_all() {
    trap '' INT TERM HUP
    # The last words of the others are read, so that none of them waits for a reader.
    exec 4<>"$work/ended"
    # shellcheck disable=SC2086
    kill $holders 2>/dev/null || true
    kill_late >/dev/null 2>&1 &
    watch=$!
    for pid in $runners; do
        wait "$pid" 2>/dev/null || true
    done
    kill -9 $watch 2>/dev/null || true # it ignores what we ignore
    rm -rf "$work"
}

trap 'end_all; exit 130' INT
trap 'end_all; exit 143' TERM HUP
rank=0
for host in $hosts; do
    mkfifo "$work/in.$rank"
    { remote_script $rank; exec sleep 2147483647; } >"$work/in.$rank" 2>/dev/null &
    holders="$holders $!"
    run_on $rank "$host" &
    runners="$runners $!"
    rank=$((rank + 1))
done
read -r rank host status <"$work/ended"
echo "launch_cluster: process $rank on $host ended with status $status; ending the others" >&2
[ "$status" -ne 0 ] || sleep 1 # in order: the others may be about to end too
end_all
exit "$status"
