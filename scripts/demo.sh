#!/bin/sh
# Serves the demo model, asks it three things over TCP as a person would, and goes on serving.
#
#   scripts/demo.sh PATH/TO/moeserve [--once]
set -eu
exe=$1
once=${2:-}
port=7070
if nc -z 127.0.0.1 $port 2>/dev/null; then
    echo "moeserve: port $port is taken, using a free one"
    port=0
fi
out=$(mktemp)
"$exe" --listen 127.0.0.1:$port >"$out" &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -f "$out"' EXIT
trap 'exit 130' INT TERM

tries=0
until grep -q ready "$out"; do
    if ! kill -0 $server 2>/dev/null; then
        echo "moeserve: the server did not start" >&2
        exit 1
    fi
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then
        echo "moeserve: the server was not ready within 60 s" >&2
        exit 1
    fi
    sleep 0.1
done
cat "$out"
port=$(sed -n 's/.*line=[^ ]*:\([0-9]*\).*/\1/p' "$out")

ask() {
    printf "\n\$ echo '%s' | nc -N 127.0.0.1 %s\n" "$1" "$port"
    printf '%s\n' "$1" | nc -N 127.0.0.1 "$port"
}
ask '{"id":1,"prompt":"27+15=","max_tokens":8,"temperature":0,"stop":"\n"}'
ask 'Q: What is the capital of France? A:'
ask 'Once upon a time'

if [ "$once" = --once ]; then
    exit 0
fi
printf '\nmoeserve is serving on 127.0.0.1:%s. Ask it something from another terminal as above; Ctrl-C ends it.\n' "$port"
wait $server
