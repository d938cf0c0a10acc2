#!/usr/bin/env bash
# From nothing to captions: installs, builds the digit-scene data, fine-tunes ofa_demo, evaluates it, draws pictures.
set -e
. "$(dirname "$0")/lib.sh"
ofa_setup
cd "$OFA_ROOT"
out=${QUICKSTART_DIR:-$OFA_ROOT/outputs/quickstart}
export SIZE=demo DATA_DIR=$out/data OUTPUT_DIR=$out RESULTS_DIR=$out OFA_PYTHON=$(ofa_python) GPUS_PER_NODE=1
mkdir -p "$out"

echo "== 1/4 digit scenes -> $DATA_DIR"
[ -f "$DATA_DIR/caption_data/test_caption_coco_format.json" ] || "$OFA_PYTHON" -m data.demo "$DATA_DIR" --tasks caption --size 48
echo "== 2/4 training ofa_demo, its image trunk first (log: $out/stage1_logs)"
[ -f "$out/trunk.pt" ] || "$OFA_PYTHON" run_scripts/quickstart_trunk.py "$DATA_DIR/caption_data/caption_stage1_train.tsv" "$out/trunk.pt"
sh run_scripts/caption/train_caption_stage1.sh --resnet-model-path="$out/trunk.pt" --batch-size=32 --update-freq=1 --lr=3e-4 --warmup-ratio=0.1 \
    --label-smoothing=0.0 --weight-decay=0.0 --save-interval-updates=0 --validate-interval-updates=0 --validate-interval=2 \
    --save-interval=2 --log-interval=100 --log-format=simple "$@"
echo "== 3/4 captions of the test pictures"
export CHECKPOINT
CHECKPOINT=$(ls -t "$out"/stage1_checkpoints/*/checkpoint_best.pt | head -n 1)
sh run_scripts/caption/evaluate_caption.sh --batch-size=50
SUBSET=blank sh run_scripts/caption/evaluate_caption.sh --batch-size=50
echo "== 4/4 pictures and scores"
"$OFA_PYTHON" -m data.demo.report "$out"
