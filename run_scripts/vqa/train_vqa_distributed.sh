#!/bin/sh
# Visual question answering: cross-entropy over the candidate answers, validated by ranking all of them with the
# averaged weights. SIZE=tiny..huge (large); other flags are passed through, e.g. for free answers
# --unconstrained-training --val-inference-type=beamsearch.
# The recipe has 4 machines of 8 GPUs, 512 rows an update: WORKER_CNT=4 MASTER_ADDR=<first machine> RANK=0..3 on each.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/vqa_data
RUN_KIND=vqa_

ofa_train 8214 "${ARCH}_${VQA_RUN}_5e-5_480" "$CHECKPOINT_DIR/$ARCH.pt" "$data/vqa_train.tsv,$data/vqa_val.tsv" \
    --task=vqa_gen --selected-cols=0,5,2,3,4 --max-src-length=80 --max-object-length=30 --max-tgt-length=30 \
    --patch-image-size=480 --add-object --prompt-type=prev_output --ans2label-file="$data/trainval_ans2label.pkl" \
    --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1 \
    --encoder-drop-path-rate="$VQA_DROP_PATH" --decoder-drop-path-rate="$VQA_DROP_PATH" $FREEZE_FLAGS \
    --lr=5e-5 $VQA_SCHEDULE --batch-size=4 --update-freq=4 \
    --uses-ema --store-ema --ema-fp32 --ema-decay=0.9999 --ema-start-update=0 \
    --save-interval=1 --validate-interval=1 --keep-last-epochs=15 --fp16-scale-window=512 \
    --val-inference-type=allcand --valid-batch-size=20 --best-checkpoint-metric=vqa_score $SIZE_FLAGS "$@"
