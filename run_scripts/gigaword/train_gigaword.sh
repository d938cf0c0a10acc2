#!/bin/sh
# Summaries of Gigaword: cross-entropy with noise in the decoder's input. SIZE=tiny..huge (large); other flags are
# passed through. Recipe: 4 GPUs, 512 rows an update.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/gigaword_data
epochs=${GIGAWORD_EPOCHS:-6}
RUN_KIND=

ofa_train 2051 "${ARCH}_${epochs}_1e-4_0.2" "$CHECKPOINT_DIR/$ARCH.pt" \
    "$data/gigaword_train.tsv,$data/gigaword_dev.tsv" \
    --task=gigaword --selected-cols=0,1 --max-src-length=512 --max-tgt-length=64 --noise-ratio=0.2 \
    --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1 \
    --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 \
    --lr=1e-4 --max-epoch="$epochs" --warmup-ratio=0.06 --batch-size=64 --update-freq=2 \
    --save-interval=1 --validate-interval=1 --save-interval-updates=2500 --validate-interval-updates=2500 \
    --no-epoch-checkpoints --keep-best-checkpoints=1 --fp16-scale-window=512 --eval-rouge --eval-print-samples \
    --eval-args='{"beam":6,"lenpen":0.7,"max_len_b":32,"no_repeat_ngram_size":3}' \
    --best-checkpoint-metric=rougeL_f1 $SIZE_FLAGS "$@"
