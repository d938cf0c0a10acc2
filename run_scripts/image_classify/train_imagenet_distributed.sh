#!/bin/sh
# ImageNet classification: cross-entropy over the class names. SIZE=tiny..huge (large); other flags are passed through.
# The recipe has 2 machines of 8 GPUs, 256 rows an update: WORKER_CNT=2 MASTER_ADDR=<first machine> RANK=0..1 on each.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/imagenet_1k_data
RUN_KIND=imagenet_1k_

ofa_train 8514 "${ARCH}_${IMAGENET_RUN:-160000_1000}_5e-5_480" "$CHECKPOINT_DIR/$ARCH.pt" \
    "$data/imagenet_1k_train.tsv,$data/imagenet_1k_val_subset.tsv" \
    --task=image_classify --selected-cols=0,2 --max-src-length=128 --max-tgt-length=30 --patch-image-size=480 \
    --imagenet-default-mean-and-std --ans2label-file="$data/class2label_new.pkl" --valid-batch-size=20 \
    --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1 \
    --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 $FREEZE_FLAGS --lr=5e-5 \
    ${IMAGENET_SCHEDULE:---total-num-update=160000 --max-update=160000 --warmup-updates=1000} \
    --batch-size=4 --update-freq=4 --save-interval=1 --validate-interval=1 --keep-last-epochs=15 \
    --fp16-scale-window=512 --best-checkpoint-metric=score $SIZE_FLAGS "$@"
