#!/bin/sh
# End-to-end figures of docs/PERF.md: the demo model and a synthetic 1.2 B MoE, through the server.
#
#   scripts/bench.sh PATH/TO/moeserve
set -eu
exe=$1
model=configs/bench-moe-1b

echo "== cold start of the demo model: process start to exit after one token"
for _ in 1 2 3 4 5; do
    start=$(date +%s%N)
    "$exe" generate -p '27+15=' --max-tokens 1 --temperature 0 >/dev/null 2>&1
    end=$(date +%s%N)
    echo "   $(((end - start) / 1000000)) ms"
done

echo "== demo model, 32 concurrent"
"$exe" bench --num-prompts 128 --max-concurrency 32 --random-input-len 64:128 --random-output-len 64

echo "== synthetic MoE of 1.2 B parameters: one request at a time"
"$exe" bench --dataset random --num-prompts 4 --warmup 1 --max-concurrency 1 --random-input-len 32 \
    --random-output-len 64 -- --model $model --load-format dummy
echo "== the same with 32 concurrent requests"
"$exe" bench --dataset random --num-prompts 64 --warmup 1 --max-concurrency 32 --random-input-len 32 \
    --random-output-len 64 -- --model $model --load-format dummy
echo "== prefill: prompts of 512 tokens, one at a time"
"$exe" bench --dataset random --num-prompts 4 --warmup 1 --max-concurrency 1 --random-input-len 512 \
    --random-output-len 1 -- --model $model --load-format dummy
