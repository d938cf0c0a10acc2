#!/bin/sh
# Boxes of referring expressions: cross-entropy over location tokens. DATASET=refcoco (or refcocoplus, refcocog),
# SIZE=tiny..huge (large); other flags are passed through. Recipe: 4 GPUs, 128 rows an update.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
dataset=${DATASET:-refcoco}
data=$DATA_DIR/${dataset}_data
case $dataset in refcocog) epochs=$REFCOCOG_EPOCHS ;; *) epochs=$REFCOCO_EPOCHS ;; esac
RUN_KIND=${dataset}_

ofa_train 6051 "${ARCH}_${epochs}_${REFCOCO_LR}_512" "$CHECKPOINT_DIR/$ARCH.pt" \
    "$data/${dataset}_train.tsv,$data/${dataset}_val.tsv" \
    --task=refcoco --selected-cols=0,4,2,3 --max-src-length=80 --max-tgt-length=20 --patch-image-size=512 \
    --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1 \
    --encoder-drop-path-rate="$REFCOCO_DROP_PATH" --decoder-drop-path-rate="$REFCOCO_DROP_PATH" \
    --lr="$REFCOCO_LR" --max-epoch="$epochs" --warmup-ratio=0.06 --batch-size=4 --update-freq=8 \
    --save-interval=1 --validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500 \
    --no-epoch-checkpoints --keep-best-checkpoints=1 --fp16-scale-window=512 \
    --eval-acc --eval-args='{"beam":5,"min_len":4,"max_len_a":0,"max_len_b":4}' --best-checkpoint-metric=score \
    $SIZE_FLAGS ${REFCOCO_SIZE_FLAGS:-} "$@"
