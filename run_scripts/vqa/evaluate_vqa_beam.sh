#!/bin/sh
# Answers by beam search over the candidates, with the averaged weights: [val|test] [FLAGS]. SIZE=tiny..huge (large).
# CHECKPOINT names another file than the released one. Recipe: 4 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
data=$DATA_DIR/vqa_data
case ${1:--} in -*) split=val ;; *) split=$1 && shift ;; esac

ofa_evaluate 8082 "${CHECKPOINT:-$CHECKPOINT_DIR/vqa_${SIZE}_best.pt}" "$split" "$RESULTS_DIR/vqa_${split}_beam" \
    "$data/vqa_$split.tsv" "'selected_cols': '0,5,2,3,4', 'ans2label_file': $(ofa_quote "$data/trainval_ans2label.pkl")" \
    --task=vqa_gen --batch-size=16 --ema-eval --beam-search-vqa-eval --beam=5 --unnormalized --temperature=1.0 "$@"
