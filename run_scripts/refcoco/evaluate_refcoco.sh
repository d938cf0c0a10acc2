#!/bin/sh
# Boxes of the eight splits of RefCOCO, RefCOCO+ and RefCOCOg, or of those in SUBSETS, e.g. SUBSETS='refcoco_val'.
# SIZE=tiny..huge (large). CHECKPOINT names another file than the released ones; other flags are passed through.
# Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large

for subset in ${SUBSETS:-refcoco_val refcoco_testA refcoco_testB refcocoplus_val refcocoplus_testA refcocoplus_testB \
    refcocog_val refcocog_test}; do
    dataset=${subset%%_*}
    ofa_evaluate 6081 "${CHECKPOINT:-$CHECKPOINT_DIR/${dataset}_${SIZE}_best.pt}" "$subset" "$RESULTS_DIR/$dataset" \
        "$DATA_DIR/${dataset}_data/$subset.tsv" "'selected_cols': '0,4,2,3'" --task=refcoco --batch-size=16 \
        --beam=5 --min-len=4 --max-len-a=0 --max-len-b=4 --no-repeat-ngram-size=3 "$@"
done
