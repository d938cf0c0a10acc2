#!/bin/sh
# Boxes of referring expressions with the encouraging loss (docs/losses.md), as in train_refcoco.sh but for the loss.
# LOG_END=probability from which its bonus continues as a tangent (0.75), DATASET and SIZE as there.
log_end=${LOG_END:-0.75}
RUN_SUFFIX=_el$log_end${RUN_SUFFIX:-} exec sh "$(dirname "$0")/train_refcoco.sh" \
    --criterion=adjust_label_smoothed_encouraging_loss --log-end="$log_end" "$@"
