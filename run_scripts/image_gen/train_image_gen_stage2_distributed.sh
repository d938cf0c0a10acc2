#!/bin/sh
# Text-to-image, stage 2: self-critical training on CLIP's similarity, from the last checkpoint of stage 1 below
# OUTPUT_DIR. CHECKPOINT names another file to start from. SIZE=tiny..huge (large); other flags are passed through.
# The recipe has 4 machines of 8 GPUs, 32 prompts an update: WORKER_CNT=4 MASTER_ADDR=<first machine> RANK=0..3 on each.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/coco_image_gen_data vqgan=${VQGAN_DIR:-$CHECKPOINT_DIR/vqgan} clip=$CHECKPOINT_DIR/clip/ViT-B-16.pt
side=256 range=--constraint-range=50265,58457
[ "$SIZE" != demo ] || side=64 range=''
RUN_KIND=image_gen_
stage1=${OUTPUT_DIR}/${RUN_KIND}checkpoints/${ARCH}_40000_2000_1e-3/checkpoint_last.pt
lengths='"min_len":1024,"max_len_a":0,"max_len_b":1024,"sampling_topk":256,"temperature":1.0'

ofa_train 8215 "${ARCH}_5000_0_1e-6" "${CHECKPOINT:-$stage1}" "$data/coco_vqgan_train.tsv,$data/coco_vqgan_dev.tsv" \
    --task=image_gen --selected-cols=0,2,1 --max-src-length=64 --max-tgt-length=1024 --code-image-size=$side \
    $range --criterion=clip_scst_reward_criterion --scst --scst-args="{\"beam\":5,$lengths}" \
    --dropout=0.0 --encoder-drop-path-rate=0.0 --decoder-drop-path-rate=0.0 --freeze-resnet \
    --lr=1e-6 --total-num-update=5000 --max-update=5000 --warmup-updates=0 \
    --batch-size=1 --batch-size-valid=1 --update-freq=1 --save-interval=1 --validate-interval=1 \
    --save-interval-updates=200 --validate-interval-updates=200 --keep-last-epochs=15 --fp16-scale-window=256 \
    --eval-args="{\"beam\":24,$lengths}" \
    --vqgan-model-path="$vqgan/last.ckpt" --vqgan-config-path="$vqgan/model.yaml" --clip-model-path="$clip" \
    --gen-images-path="$RESULTS_DIR/image_gen_stage2" --best-checkpoint-metric=score $SIZE_FLAGS "$@"
