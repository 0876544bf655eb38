#!/bin/sh
# Runs fuzz targets one after the other, from seeds that the parsers accept, and ends at the first
# finding. New inputs are kept in TARGET.corpus for the next time.
#
#   scripts/fuzz.sh SECONDS TARGET...
set -eu
seconds=$1
shift
for target in "$@"; do
    name=$(basename "$target")
    corpus=$target.corpus
    dict=
    mkdir -p "$corpus"
    case $name in
    fuzz_chat_template) seeds=tests/fuzz/chat_seeds/* dict=tests/fuzz/chat.dict ;;
    fuzz_http) seeds=tests/fuzz/seeds/http_* dict=tests/fuzz/http.dict ;;
    fuzz_openai) seeds=tests/fuzz/seeds/openai_* dict=tests/fuzz/json.dict ;;
    fuzz_line) seeds=tests/fuzz/seeds/line_* ;;
    fuzz_json_schema) seeds=tests/fuzz/seeds/schema_* dict=tests/fuzz/schema.dict ;;
    fuzz_model_config) seeds=tests/data/golden/*/config.json dict=tests/fuzz/json.dict ;;
    fuzz_tokenizer_json) seeds=tests/data/tokenizers/*/tokenizer.json dict=tests/fuzz/json.dict ;;
    *) seeds= ;;
    esac
    for seed in $seeds; do
        cp "$seed" "$corpus/seed-$(echo "$seed" | tr / -)"
    done
    echo "== $name"
    "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
        ${dict:+-dict=$dict} "$corpus"
done
