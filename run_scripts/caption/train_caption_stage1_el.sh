#!/bin/sh
# Captioning, stage 1, with the encouraging loss (docs/losses.md). LOG_END=probability from which its bonus goes on as
# a tangent (0.75), DROP_BEST=share of tokens with the smallest loss to leave out (none), SIZE=tiny..huge (large); other
# flags are passed through.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/caption_data
RUN_KIND=stage1_
log_end=${LOG_END:-0.75}
drop_best=${DROP_BEST:+--drop-best-ratio=$DROP_BEST --drop-best-after=$CAPTION_DROP_AFTER}

ofa_train 1051 "${ARCH}_${CAPTION_EPOCHS}_0.06_${DROP_BEST:+dwdb}${CAPTION_DROP_AFTER}_el${log_end}_" \
    "$CHECKPOINT_DIR/$ARCH.pt" "$data/caption_stage1_train.tsv,$data/caption_val.tsv" \
    --task=caption --selected-cols=0,4,2 --max-src-length=80 --max-tgt-length=20 --patch-image-size=480 \
    --criterion=adjust_label_smoothed_encouraging_loss --label-smoothing=0.1 --log-end="$log_end" \
    --drop-worst-ratio=0.05 --drop-worst-after="$CAPTION_DROP_AFTER" $drop_best \
    --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 $FREEZE_FLAGS \
    --lr=1e-5 --max-epoch="$CAPTION_EPOCHS" --warmup-ratio=0.06 --batch-size=8 --update-freq=4 \
    --save-interval=1 --validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500 \
    --no-epoch-checkpoints --keep-best-checkpoints=1 --fp16-scale-window=512 \
    --eval-cider --eval-cider-cached-tokens="$data/cider_cached_tokens/coco-valid-words.p" \
    --eval-args='{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}' --best-checkpoint-metric=cider $SIZE_FLAGS "$@"
