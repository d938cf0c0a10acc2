#!/bin/sh
# Summaries of Gigaword's test split, then ROUGE. SIZE=tiny..huge (large).
# CHECKPOINT names another file than the released one; other flags are passed through. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large

ofa_evaluate 2081 "${CHECKPOINT:-$CHECKPOINT_DIR/gigaword_${SIZE}_best.pt}" test "$RESULTS_DIR/gigaword" \
    "$DATA_DIR/gigaword_data/gigaword_test.tsv" "'selected_cols': '0,1'" --task=gigaword --batch-size=32 \
    --beam=6 --lenpen=0.7 --max-len-b=32 --no-repeat-ngram-size=3 "$@"
[ -n "${DRY_RUN:-}" ] || "$(ofa_python)" "$OFA_ROOT/run_scripts/gigaword/eval_rouge.py" \
    "$RESULTS_DIR/gigaword/test_predict.json"
