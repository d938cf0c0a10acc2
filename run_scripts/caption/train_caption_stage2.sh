#!/bin/sh
# Captioning, stage 2: self-critical training on CIDEr-D, from the best checkpoint of stage 1. SIZE=tiny..huge (large).
# CHECKPOINT names another file to start from; other flags are passed through. Recipe: 8 GPUs, 64 images an update.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/caption_data
train=$data/caption_stage2_train.tsv words=$data/cider_cached_tokens/coco
train_words=$words-train-words.p valid_words=$words-valid-words.p
case $SIZE in
large | huge) stage1=caption_stage1_best.pt end_lr=2e-7 ;;
demo) stage1=caption_stage1_demo_best.pt end_lr=0 train=$data/caption_stage1_train.tsv train_words='' valid_words='' ;;
*) stage1=caption_stage1_${SIZE}_best.pt end_lr=0 ;;
esac
RUN_KIND=stage2_
[ "$PRECISION" != fp16 ] || memory='--memory-efficient-fp16'

ofa_train 1052 "${ARCH}_1e-5_3" "${CHECKPOINT:-$CHECKPOINT_DIR/$stage1}" "$train,$data/caption_val.tsv" \
    --task=caption --selected-cols=1,4,2 --max-src-length=80 --max-tgt-length=20 --patch-image-size=480 \
    --criterion=scst_reward_criterion --scst --scst-cider-cached-tokens="$train_words" \
    --scst-args='{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}' \
    --dropout=0.0 --encoder-drop-path-rate=0.0 --decoder-drop-path-rate=0.0 $FREEZE_FLAGS \
    --lr=1e-5 --end-learning-rate="$end_lr" --max-epoch=3 --warmup-ratio=0.06 --batch-size=2 --update-freq=4 \
    --save-interval=1 --validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500 \
    --no-epoch-checkpoints --keep-best-checkpoints=1 ${memory:-} --fp16-scale-window=512 \
    --eval-cider --eval-cider-cached-tokens="$valid_words" \
    --eval-args='{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}' --best-checkpoint-metric=cider $SIZE_FLAGS "$@"
