#!/bin/sh
# Text-to-image, stage 1: cross-entropy on image codes. SIZE=tiny..huge (large); other flags are passed through.
# The recipe has 4 machines of 8 GPUs, 512 rows an update: WORKER_CNT=4 MASTER_ADDR=<first machine> RANK=0..3 on each.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/coco_image_gen_data vqgan=${VQGAN_DIR:-$CHECKPOINT_DIR/vqgan} clip=$CHECKPOINT_DIR/clip/ViT-B-16.pt
side=256 range=--constraint-range=50265,58457 metric=score keep=$RESULTS_DIR/image_gen_stage1
# The demo has no CLIP: validation draws nothing and has the accuracy of codes only.
[ "$SIZE" != demo ] || side=64 range='' clip='' metric='accuracy --report-accuracy' keep=''
RUN_KIND=image_gen_

ofa_train 8214 "${ARCH}_40000_2000_1e-3" "$CHECKPOINT_DIR/$ARCH.pt" \
    "$data/coco_vqgan_train.tsv,$data/coco_vqgan_dev.tsv" \
    --task=image_gen --selected-cols=0,2,1 --max-src-length=64 --max-tgt-length=1024 --code-image-size=$side \
    $range --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.0 \
    --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 \
    --lr=1e-3 --total-num-update=40000 --max-update=40000 --warmup-updates=2000 \
    --batch-size=4 --batch-size-valid=1 --update-freq=4 \
    --save-interval=3 --validate-interval=3 --keep-last-epochs=15 --fp16-scale-window=256 \
    --eval-args='{"beam":24,"min_len":1024,"max_len_a":0,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}' \
    --vqgan-model-path="$vqgan/last.ckpt" --vqgan-config-path="$vqgan/model.yaml" --clip-model-path="$clip" \
    --gen-images-path="$keep" --best-checkpoint-metric=$metric $SIZE_FLAGS "$@"
