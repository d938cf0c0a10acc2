#!/bin/sh
# Multitask pretraining, continued from a released checkpoint. SIZE=tiny..huge (large); CHECKPOINT names another file to
# start from, or none for random weights; other flags are passed through.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/pretrain_data
RUN_KIND=

ofa_train 1051 "${ARCH}_pretraining" "${CHECKPOINT:-$CHECKPOINT_DIR/$ARCH.pt}" "$data/vision_language_examples.tsv" \
    --task=unify_task --selected-cols=0,1,2,3,4,5,6,7 --text-data="$data/text_examples.tsv" --text-selected-cols=0,1 \
    --image-data="$data/image_examples.tsv" --image-selected-cols=0,1,2 \
    --detection-data="$data/detection_examples.tsv" --detection-selected-cols=0,1,2 \
    --neg-sample-dir="$data/negative_sample" --max-src-length=80 --max-tgt-length=30 --max-image-size=512 \
    --patch-image-size=384 --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.0 \
    --sample-patch-num=196 --clip-norm=5.0 --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 \
    --lr=1e-4 --max-epoch=50 --warmup-ratio=0.01 --batch-size=4 --update-freq=1 --disable-validation \
    --save-interval=1 --save-interval-updates=6000 --keep-last-epochs=15 --fp16-scale-window=128 $SIZE_FLAGS ${PRETRAIN_SIZE_FLAGS:-} "$@"
