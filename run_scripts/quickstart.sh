#!/usr/bin/env bash
# From nothing to captions: installs, builds the digit-scene data, fine-tunes checkpoints/ofa_demo.pt, evaluates it,
# draws images. Flags are passed on to the training.
set -e
. "$(dirname "$0")/lib.sh"
ofa_setup
cd "$OFA_ROOT"
out=${QUICKSTART_DIR:-$OFA_ROOT/outputs/quickstart}
export SIZE=demo DATA_DIR=$out/data OUTPUT_DIR=$out RESULTS_DIR=$out OFA_PYTHON=$(ofa_python) GPUS_PER_NODE=1
export CAPTION_EPOCHS=${CAPTION_EPOCHS:-3}
mkdir -p "$out"

echo "== 1/4 digit scenes -> $DATA_DIR"
[ -f "$DATA_DIR/caption_data/caption_blank.tsv" ] || "$OFA_PYTHON" -m data.demo "$DATA_DIR" --tasks caption --size 48
echo "== 2/4 fine-tuning checkpoints/ofa_demo.pt (log: $out/stage1_logs)"
sh run_scripts/caption/train_caption_stage1.sh --batch-size=32 --update-freq=1 --lr=3e-4 --warmup-ratio=0.1 --label-smoothing=0.0 \
    --weight-decay=0.0 --max-tgt-length=30 --save-interval-updates=0 --validate-interval-updates=0 --log-interval=100 \
    --log-format=simple --store-ema --ema-fp32 --ema-start-update=0 "$@"
echo "== 3/4 captions of the test images: of one digit, of none, of two and of three"
export CHECKPOINT # its running average of the weights reads a little better than its last ones
CHECKPOINT=$(ls -t "$out"/stage1_checkpoints/*/checkpoint_best.pt | head -n 1)
sh run_scripts/caption/evaluate_caption.sh --batch-size=50 --ema-eval
for subset in blank two_digits three_digits; do # places may recur in captions of several digits
    SUBSET=$subset sh run_scripts/caption/evaluate_caption.sh --batch-size=50 --ema-eval --max-len-b=40 --no-repeat-ngram-size=0
done
echo "== 4/4 images and scores"
"$OFA_PYTHON" -m digits.report "$out"
