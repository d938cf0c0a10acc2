#!/bin/sh
# Free answers by beam search, of a model trained with --unconstrained-training: [val|test] [CHECKPOINT] [FLAGS].
# CHECKPOINT may be in the environment instead. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
case ${1:--} in -*) split=val ;; *) split=$1 && shift ;; esac
case ${1:--} in -*) ;; *) CHECKPOINT=$1 && shift ;; esac
: "${CHECKPOINT:?name the checkpoint to evaluate: evaluate_vqa_unconstrained.sh val CHECKPOINT}"

ofa_evaluate 8082 "$CHECKPOINT" "$split" "$RESULTS_DIR/vqa_${split}_unconstrained" "$DATA_DIR/vqa_data/vqa_$split.tsv" \
    "'selected_cols': '0,5,2,3,4'" --task=vqa_gen --batch-size=16 --ema-eval --beam-search-vqa-eval \
    --beam=5 --unnormalized --temperature=1.0 "$@"
