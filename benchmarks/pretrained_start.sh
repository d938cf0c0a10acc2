#!/usr/bin/env bash
# What pretraining is worth: captioning, question answering and grounding on digit scenes, the same number of updates
# from checkpoints/ofa_demo.pt and from random weights; a markdown table of the best validation scores.
#
#     bash benchmarks/pretrained_start.sh [OUT_DIR] [UPDATES]
set -e
cd "$(dirname "$0")/.."
. run_scripts/lib.sh
out=${1:-$OFA_ROOT/outputs/pretrained_start} updates=${2:-150}
export SIZE=demo DATA_DIR=$out/data GPUS_PER_NODE=1 OMP_NUM_THREADS=1 OFA_PYTHON=$(ofa_python)
mkdir -p "$out/nothing"
[ -d "$DATA_DIR" ] || "$OFA_PYTHON" -m data.demo "$DATA_DIR" --size 48 --tasks caption,vqa_gen,refcoco --train $((32 * updates)) --val 300 --test 1

# score START SCRIPT METRIC: fine-tunes and prints the best score.
score() {
    case $1 in pretrained) folder=$OFA_ROOT/checkpoints ;; *) folder=$out/nothing ;; esac
    log=$out/$1_$3.log
    CHECKPOINT_DIR=$folder OUTPUT_DIR=$out/$1 sh "run_scripts/$2.sh" --batch-size=32 --update-freq=1 --lr=3e-4 --warmup-ratio=0.1 \
        --max-epoch=1 --label-smoothing=0.0 --weight-decay=0.0 --save-interval-updates=0 --validate-interval-updates=0 \
        --no-epoch-checkpoints --keep-last-epochs=-1 --log-interval=50 --log-format=simple > "$log" 2>&1
    sed -n "s/.*| $3 \([0-9.]*\) .*/\1/p" "$log" | sort -g | tail -n 1
}

for start in pretrained random; do
    ( # a lane for each start
        score $start caption/train_caption_stage1 cider > "$out/$start.cider"
        score $start vqa/train_vqa_distributed vqa_score > "$out/$start.vqa_score"
        score $start refcoco/train_refcoco score > "$out/$start.score"
    ) &
    pids="${pids:-} $!"
done
for pid in $pids; do wait "$pid"; done
echo "| after $updates updates of 32 | pretrained | random weights |"
echo "| --- | --- | --- |"
for metric in cider vqa_score score; do
    case $metric in cider) name='captioning, CIDEr-D (10)' ;; vqa_score) name='question answering, VQA score' ;; *) name='grounding, Acc@0.5' ;; esac
    echo "| $name | $(cat "$out/pretrained.$metric") | $(cat "$out/random.$metric") |"
done
