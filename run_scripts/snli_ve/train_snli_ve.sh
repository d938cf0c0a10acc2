#!/bin/sh
# Visual entailment: cross-entropy over yes, no and maybe. SIZE=tiny..huge (large); other flags are passed through.
# Recipe: 8 GPUs, 256 rows an update.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/snli_ve_data
RUN_KIND=

ofa_train 7051 "${ARCH}_${SNLI_VE_EPOCHS}_$SNLI_VE_LR" "$CHECKPOINT_DIR/$ARCH.pt" \
    "$data/snli_ve_train.tsv,$data/snli_ve_dev.tsv" \
    --task=snli_ve --selected-cols=0,2,3,4,5 --max-src-length=80 --max-tgt-length=20 --patch-image-size=480 \
    --add-caption --prompt-type=prev_output \
    --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.0 \
    --encoder-drop-path-rate="$SNLI_VE_DROP_PATH" --decoder-drop-path-rate="$SNLI_VE_DROP_PATH" \
    --lr="$SNLI_VE_LR" --max-epoch="$SNLI_VE_EPOCHS" --warmup-ratio=0.06 --batch-size=4 --update-freq=8 \
    --save-interval=1 --validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500 \
    --keep-best-checkpoints=1 --fp16-scale-window=512 --best-checkpoint-metric=snli_score $SIZE_FLAGS "$@"
