#!/usr/bin/env bash
# Makes checkpoints/ofa_demo.pt from nothing on two CPU cores (about two hours): an image trunk that
# knows labels, captions of one digit, image codes, then all objectives on scenes of one to three digits. What a big model
# finds in BART, a ResNet and the released VQGAN, the demo learns in the first three steps. OFA_DEMO_SCALE shortens it, as in demo_all.sh.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_setup
cd "$OFA_ROOT"
out=${PRETRAIN_DIR:-$OFA_ROOT/outputs/pretrain}
export SIZE=demo DATA_DIR=$out/data CHECKPOINT_DIR=$out OUTPUT_DIR=$out STEPS_DIR=$out OFA_PYTHON=$(ofa_python) GPUS_PER_NODE=1
mkdir -p "$out"
data=$DATA_DIR/pretrain_data vqgan=$out/ofa_demo_vqgan

ofa_once data "$OFA_PYTHON" -m data.demo "$DATA_DIR" --size 48 --tasks first_captions --train "$(ofa_scaled 6000 48)" --val 400
ofa_once trunk "$OFA_PYTHON" -m digits.train_trunk "$out/trunk.pt" --updates="$(ofa_scaled 2000 20)"
DATA_DIR=$DATA_DIR/first CAPTION_EPOCHS=$(ofa_scaled 3 1) ofa_once captions sh run_scripts/caption/train_caption_stage1.sh --restore-file=none --resnet-model-path="$out/trunk.pt" \
    --batch-size=32 --update-freq=1 --lr=3e-4 --warmup-ratio=0.1 --label-smoothing=0.0 --validate-interval-updates=0 $DEMO_RUN_FLAGS
ofa_once pretrain_data "$OFA_PYTHON" -m data.demo "$DATA_DIR" --size 48 --tasks pretrain --train "$(ofa_scaled 64000 96)" --seed 2
ofa_once vqgan "$OFA_PYTHON" -m digits.train_vqgan "$vqgan.ckpt" "$vqgan.yaml" --steps "$(ofa_scaled 6000 10)" \
    --sheet "$out/vqgan.png"
codes() {
    "$OFA_PYTHON" -m utils.image_codes encode --vqgan-model-path "$vqgan.ckpt" --vqgan-config-path "$vqgan.yaml" "$@"
}
# The text column repeats the image, so that it stands beside its codes.
ofa_once codes codes --file "$data/picture_examples.tsv" --selected-cols 0,0,1,1 --outputs "$data/image_examples.tsv" \
    --code-image-size 64 --crop 32
ofa_once image_gen_codes codes --file "$data/described_examples.tsv" --selected-cols 0,1,2,3 \
    --outputs "$data/image_gen_examples.tsv" --code-image-size 32
# pretrain CHECKPOINT EPOCHS FLAGS...: two processes of one thread each use two cores better than one of two.
pretrain() {
    GPUS_PER_NODE=2 OMP_NUM_THREADS=1 CHECKPOINT=$1 sh run_scripts/pretraining/pretrain_ofa_large.sh \
        --image-selected-cols=0,2,3 --batch-size=16 --lr=3e-4 --warmup-ratio=0.02 --max-epoch="$(ofa_scaled "$2" 1)" \
        $DEMO_RUN_FLAGS "${@:3}"
}
# one_digit FOLDER: the captions of one digit among the rows, and among the wrong texts.
one_digit() {
    mkdir -p "$1/negative_sample"
    cp "$data"/negative_sample/* "$1/negative_sample/"
    grep '^a ' "$data/negative_sample/all_captions.txt" | grep -v ' and ' > "$1/negative_sample/all_captions.txt"
    awk -F '\t' '$8 == "caption" && $6 !~ /&&/' "$data/vision_language_examples.tsv" > "$1/vision_language_examples.tsv"
}
runs=$out/checkpoints/ofa_demo_pretraining
ofa_once pretrain pretrain "$(ls -t "$out"/stage1_checkpoints/*/checkpoint_best.pt | head -n 1)" 2
# To compare a text with an image is hardest. Among large losses it is not learned; by itself, about one digit, it soon is.
ofa_once one_digit one_digit "$DATA_DIR/one_digit/pretrain_data"
DATA_DIR=$DATA_DIR/one_digit RUN_SUFFIX=_matching ofa_once matching pretrain "$runs/checkpoint_last.pt" 4 --seed=2 --matching-weight=20 \
    --text-data= --image-data= --detection-data=
RUN_SUFFIX=_drawing ofa_once drawing pretrain "${runs}_matching/checkpoint_last.pt" 1 --seed=3 --matching-weight=20 \
    --image-gen-data="$data/image_gen_examples.tsv" --image-gen-selected-cols=0,2,3 --image-gen-ratio=0.5
