#!/usr/bin/env bash
# Every task for real on two CPU cores: trains ofa_demo on digit scenes task by task, evaluates it, ends with one table.
# OFA_DEMO_SCALE shortens it: 1 is the full length (under an hour), 0.01 only shows that everything runs.
# TASKS names fewer tasks. Rerun it to resume: finished steps are skipped.
set -e
. "$(dirname "$0")/lib.sh"
ofa_setup
cd "$OFA_ROOT"
out=${DEMO_DIR:-$OFA_ROOT/outputs/demo_all}
tasks=${TASKS:-image_gen caption vqa_gen refcoco snli_ve image_classify gigaword cola mnli mrpc qnli qqp rte sst2}
export SIZE=demo DATA_DIR=$out/data RESULTS_DIR=$out/results STEPS_DIR=$out GPUS_PER_NODE=1
export OFA_PYTHON=$(ofa_python) SUBSETS='refcoco_val refcoco_testA refcoco_testB'
unset BPE_DIR
mkdir -p "$out"

# is_wanted TASK: whether the demo runs it.
is_wanted() { case " $tasks " in *" $1 "*) ;; *) return 1 ;; esac; }

# data ROWS TASK...: training rows of those of these tasks that are wanted, and a few for validation and test.
data() {
    rows=$1 wanted=
    shift
    for name; do ! is_wanted "$name" || wanted=$wanted,$name; done
    [ -z "$wanted" ] || ofa_once "data$(echo "$wanted" | tr , _)" "$OFA_PYTHON" -m data.demo "$DATA_DIR" --size 48 \
        --tasks "${wanted#,}" --train "$(ofa_scaled "$rows" 48)" --val "$few" --test "$few"
}

# train TASK EPOCHS SCRIPT FLAGS...: what the demo changes in a recipe are larger steps and fewer validations.
train() {
    epochs=$(ofa_scaled "$2" 1) script=$3 OUTPUT_DIR=$out/$1
    shift 3
    MAX_EPOCHS=$epochs OUTPUT_DIR=$OUTPUT_DIR sh "run_scripts/$script.sh" --batch-size=32 --update-freq=1 --lr=5e-4 --warmup-ratio=0.1 \
        --max-epoch="$epochs" --label-smoothing=0.0 --save-interval=1 --validate-interval=1 --validate-interval-updates=0 \
        $DEMO_RUN_FLAGS "$@"
}

# test_of TASK SCRIPT ARGS...: evaluates the task's best checkpoint.
test_of() {
    CHECKPOINT=$(find "$out/$1" -name checkpoint_best.pt) sh "run_scripts/$2.sh" "${@:3}"
}

# task NAME EPOCHS TRAIN_SCRIPT EVALUATE_SCRIPT ARGS...
task() {
    is_wanted "$1" || return 0
    ofa_once "train_$1" train "$1" "$2" "$3"
    ofa_once "test_$1" test_of "$1" "${@:4}" --with-scores
}

few=$(ofa_scaled 400 10)
data 6000 caption
data 16000 vqa_gen
data 16000 refcoco
data 10000 snli_ve image_classify
data 4000 image_gen
! is_wanted image_gen || ofa_once codes sh run_scripts/image_gen/demo_codes.sh
data 6000 gigaword cola mnli mrpc qnli qqp rte sst2

# Two lanes of one thread each use two cores better than one run of two threads.
export OMP_NUM_THREADS=1
(
    task vqa_gen 3 vqa/train_vqa_distributed vqa/evaluate_vqa_allcand test
    task image_gen 16 image_gen/train_image_gen_stage1_distributed image_gen/demo_draw
    task gigaword 3 gigaword/train_gigaword gigaword/evaluate_gigaword
    task caption 3 caption/train_caption_stage1 caption/evaluate_caption
    for name in cola mnli; do task $name 6 glue/train_$name glue/evaluate_glue $name; done
) &
first_lane=$!
(
    task refcoco 3 refcoco/train_refcoco refcoco/evaluate_refcoco
    task snli_ve 4 snli_ve/train_snli_ve snli_ve/evaluate_snli_ve test
    task image_classify 4 image_classify/train_imagenet_distributed image_classify/evaluate_imagenet
    for name in mrpc qnli qqp rte sst2; do task $name 6 glue/train_$name glue/evaluate_glue $name; done
) &
wait $!
wait $first_lane
[ "${OFA_DEMO_SCALE:-1}" = 1 ] && allow= || allow=--allow-chance
"$OFA_PYTHON" -m digits.page "$out" $allow
