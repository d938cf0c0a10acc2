#!/bin/sh
# Answers of the pretrained model, not fine-tuned, by free beam search: [val|test] [FLAGS]. SIZE=tiny..huge (large).
# CHECKPOINT names another file than the pretrained one. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
case ${1:--} in -*) split=val ;; *) split=$1 && shift ;; esac

ofa_evaluate 8082 "${CHECKPOINT:-$CHECKPOINT_DIR/$ARCH.pt}" "$split" "$RESULTS_DIR/vqa_${split}_zeroshot" \
    "$DATA_DIR/vqa_data/vqa_$split.tsv" "" --zero-shot --task=vqa_gen --bpe-dir="$BPE_DIR" --selected-cols=0,5,2,3,4 \
    --patch-image-size=480 --prompt-type=none --batch-size=8 --beam=20 --unnormalized --temperature=1.0 \
    $SIZE_DATA_FLAGS "$@"
