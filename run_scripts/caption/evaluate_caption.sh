#!/bin/sh
# Captions of the test split by beam search, then the COCO scores. SIZE=tiny..huge (large).
# CHECKPOINT names another file than the released one, SUBSET another split than test; other flags are passed through.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/caption_data
subset=${SUBSET:-test}
case $SIZE in large) released=caption_large_best_clean.pt ;; *) released=caption_${SIZE}_best.pt ;; esac

ofa_evaluate 1081 "${CHECKPOINT:-$CHECKPOINT_DIR/$released}" "$subset" "$RESULTS_DIR/caption" "$data/caption_$subset.tsv" \
    "'eval_cider': False, 'selected_cols': '1,4,2'" --task=caption --batch-size=16 --beam="$CAPTION_BEAM" \
    --max-len-b=16 --no-repeat-ngram-size=3 --temperature="$CAPTION_TEMPERATURE" --lenpen="$CAPTION_LENPEN" "$@"
references=$data/test_caption_coco_format.json
if [ -z "${DRY_RUN:-}" ] && [ "$subset" = test ] && [ ! -f "$references" ]; then
    echo "There is no $references: the captions are not scored."
    exit 0
fi
[ -n "${DRY_RUN:-}" ] || [ "$subset" != test ] || "$(ofa_python)" "$OFA_ROOT/run_scripts/caption/coco_eval.py" \
    "$RESULTS_DIR/caption/test_predict.json" "$references"
