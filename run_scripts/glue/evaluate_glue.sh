#!/bin/sh
# Labels and scores of a GLUE task's dev split: TASK [FLAGS]. SIZE=tiny..huge (large). CHECKPOINT names the file, which
# train_glue.sh keeps with --save-interval=1.
set -e
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/lib.sh"
ofa_size large
ofa_glue "${1:-}"
task=$1
shift

ofa_evaluate "$GLUE_PORT" "${CHECKPOINT:-$CHECKPOINT_DIR/${task}_${SIZE}_best.pt}" dev "$RESULTS_DIR/glue/$task" \
    "$DATA_DIR/glue_data/${task}_dev.tsv" "'selected_cols': '$GLUE_COLS'" --task="$task" --batch-size="$GLUE_BATCH" "$@"
