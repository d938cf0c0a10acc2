#!/usr/bin/env bash
# Shows what stage 2 does, on two CPU cores (a quarter of an hour): a stage 1 cut short, on images of one
# digit, then self-critical training on its own captions; ends with the COCO scores of both on the test images.
# (From checkpoints/ofa_demo.pt stage 1 alone is all but perfect.) Rerun it to resume: finished steps are skipped.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_setup
cd "$OFA_ROOT"
out=${DEMO_DIR:-$OFA_ROOT/outputs/demo_stage2}
export SIZE=demo OUTPUT_DIR=$out STEPS_DIR=$out GPUS_PER_NODE=1 CAPTION_EPOCHS=3
export OFA_PYTHON=$(ofa_python)
mkdir -p "$out"

# last STAGE: its checkpoint. train STAGE UPDATES FLAGS...: on images of one digit, the rate decays over the updates.
last() { ls "$out/$1_checkpoints"/*/checkpoint_last.pt; }
train() {
    DATA_DIR=$out/data/first sh "run_scripts/caption/train_caption_$1.sh" --update-freq=1 --save-interval-updates=0 \
        --validate-interval-updates=0 --log-interval=10 --log-format=simple --max-update="$2" --total-num-update="$2" \
        --warmup-ratio=0 --warmup-updates=$(($2 / 10)) "${@:3}"
}

ofa_once data "$OFA_PYTHON" -m data.demo "$out/data" --size 48 --tasks first_captions,caption --train "$(ofa_scaled 6000 48)" \
    --val "$(ofa_scaled 400 10)" --test "$(ofa_scaled 400 10)"
ofa_once trunk "$OFA_PYTHON" -m digits.train_trunk "$out/trunk.pt" --updates="$(ofa_scaled 2000 20)"
ofa_once stage1 train stage1 "$(ofa_scaled 430 2)" --restore-file=none \
    --resnet-model-path="$out/trunk.pt" --batch-size=32 --lr=3e-4 --label-smoothing=0.0 --weight-decay=0.0
CHECKPOINT=$(last stage1) ofa_once stage2 train stage2 "$(ofa_scaled 150 2)" --batch-size=16 --lr=5e-5
for stage in stage1 stage2; do
    DATA_DIR=$out/data CHECKPOINT=$(last $stage) RESULTS_DIR=$out/$stage ofa_once test_$stage \
        sh run_scripts/caption/evaluate_caption.sh --batch-size=50
    echo "$stage: $(tr -d '\n' < "$out/$stage/caption/test_scores.json")"
done
