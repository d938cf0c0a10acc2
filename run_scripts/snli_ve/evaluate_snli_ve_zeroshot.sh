#!/bin/sh
# Entailment by the pretrained model, not fine-tuned, from the image alone. SIZE=tiny..huge (base).
# CHECKPOINT names another file than the pretrained one; other flags are passed through. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size base

ofa_evaluate 6081 "${CHECKPOINT:-$CHECKPOINT_DIR/$ARCH.pt}" snli_ve_zeroshot "$RESULTS_DIR/snli_ve" \
    "$DATA_DIR/snli_ve_data/snli_ve_dev.tsv" "" --zero-shot --task=snli_ve --bpe-dir="$BPE_DIR" \
    --selected-cols=0,2,3,4,5 --patch-image-size=384 --max-src-length=80 --prompt-type=prev_output --batch-size=16 \
    $SIZE_DATA_FLAGS "$@"
