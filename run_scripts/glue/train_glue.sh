#!/bin/sh
# One task of GLUE: TASK [FLAGS]. Trains each combination of MAX_EPOCHS, LRS and UPDATE_FREQS, one after the other; each
# of the three may name fewer than the recipe, e.g. MAX_EPOCHS=5 LRS="5e-5 3e-5" UPDATE_FREQS=4. SIZE=tiny..huge (large).
# As in the recipe scores are in the logs only: --save-interval=1 keeps checkpoints for evaluate_glue.sh.
set -e
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/lib.sh"
ofa_size large
ofa_glue "${1:-}"
task=$1 data=$DATA_DIR/glue_data
shift
RUN_KIND=

for max_epoch in ${MAX_EPOCHS:-5 7 10}; do for lr in ${LRS:-1e-4 7e-5 6e-5 5e-5 3e-5}; do
    for update_freq in ${UPDATE_FREQS:-$(echo "$GLUE_UPDATE_FREQS" | tr , ' ')}; do
        ofa_train "$GLUE_PORT" "$task/${ARCH}_${max_epoch}_${lr}_$update_freq" "$CHECKPOINT_DIR/$ARCH.pt" \
            "$data/${task}_train.tsv,$data/${task}_dev.tsv" \
            --task="$task" --selected-cols="$GLUE_COLS" --max-src-length=512 --max-tgt-length=30 --prompt-type=src \
            --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.0 \
            --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 --lr="$lr" --max-epoch="$max_epoch" \
            --warmup-ratio=0.06 --batch-size="$GLUE_BATCH" --update-freq="$update_freq" \
            --save-interval=100000 --save-interval-updates=100000 --keep-best-checkpoints=1 --validate-interval=1 \
            --validate-interval-updates="$GLUE_VALIDATE" --best-checkpoint-metric="$GLUE_METRIC" \
            --fp16-init-scale=16 --fp16-scale-window=512 $SIZE_FLAGS "$@"
    done
done; done
