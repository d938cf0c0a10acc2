#!/bin/sh
# Boxes of the pretrained model, not fine-tuned, on the validation split of RefCOCO. SIZE=tiny..huge (large).
# CHECKPOINT names another file than the pretrained one; other flags are passed through. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large

ofa_evaluate 6081 "${CHECKPOINT:-$CHECKPOINT_DIR/$ARCH.pt}" refcoco_val "$RESULTS_DIR/refcoco" \
    "$DATA_DIR/refcoco_data/refcoco_val.tsv" "" --zero-shot --task=refcoco --bpe-dir="$BPE_DIR" \
    --selected-cols=0,4,2,3 --patch-image-size=480 --batch-size=16 \
    --beam=5 --min-len=4 --max-len-a=0 --max-len-b=4 --no-repeat-ngram-size=3 \
    $SIZE_DATA_FLAGS ${REFCOCO_SIZE_FLAGS:-} "$@"
