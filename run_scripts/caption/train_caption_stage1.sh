#!/bin/sh
# Captioning, stage 1: cross-entropy on one caption per row. SIZE=tiny..huge (large); other flags are passed through.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/caption_data
RUN_KIND=stage1_
words=$data/cider_cached_tokens/coco-valid-words.p
[ "$SIZE" != demo ] || words='' # counted in the validation file

ofa_train 1051 "${ARCH}_${CAPTION_EPOCHS}_0.06_$CAPTION_DROP_AFTER" "$CHECKPOINT_DIR/$ARCH.pt" \
    "$data/caption_stage1_train.tsv,$data/caption_val.tsv" \
    --task=caption --selected-cols=0,4,2 --max-src-length=80 --max-tgt-length=20 --patch-image-size=480 \
    --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1 \
    --drop-worst-ratio=0.2 --drop-worst-after="$CAPTION_DROP_AFTER" \
    --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 $FREEZE_FLAGS \
    --lr=1e-5 --max-epoch="$CAPTION_EPOCHS" --warmup-ratio=0.06 --batch-size=8 --update-freq=4 \
    --save-interval=1 --validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500 \
    --no-epoch-checkpoints --keep-best-checkpoints=1 --fp16-scale-window=512 \
    --eval-cider --eval-cider-cached-tokens="$words" \
    --eval-args='{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}' --best-checkpoint-metric=cider $SIZE_FLAGS "$@"
