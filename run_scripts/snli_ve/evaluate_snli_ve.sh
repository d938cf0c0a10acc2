#!/bin/sh
# Entailment of a split: [dev|test] [FLAGS]. SIZE=tiny..huge (large). CHECKPOINT names another file than the released
# one. Recipe: 8 GPUs.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
case ${1:--} in -*) split=dev ;; *) split=$1 && shift ;; esac

ofa_evaluate 7081 "${CHECKPOINT:-$CHECKPOINT_DIR/snli_ve_${SIZE}_best.pt}" "$split" "$RESULTS_DIR/snli_ve" \
    "$DATA_DIR/snli_ve_data/snli_ve_$split.tsv" "'selected_cols': '0,2,3,4,5'" --task=snli_ve --batch-size=8 "$@"
