#!/bin/sh
# Classes of ImageNet's validation images by exact ranking of all names. SIZE=tiny..huge (large).
# CHECKPOINT names another file than the released one; other flags are passed through. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/imagenet_1k_data

ofa_evaluate 8087 "${CHECKPOINT:-$CHECKPOINT_DIR/imagenet_1k_${SIZE}_best.pt}" val "$RESULTS_DIR/imagenet_1k_val" \
    "$data/imagenet_1k_val.tsv" "'selected_cols': '0,2', 'ans2label_file': $(ofa_quote "$data/class2label_new.pkl")" \
    --task=image_classify --batch-size=8 "$@"
