#!/bin/sh
# Captioning, stage 1, with the encouraging loss (docs/losses.md), as in train_caption_stage1.sh but for the loss.
# LOG_END=probability from which its bonus continues as a tangent (0.75), DROP_BEST=share of tokens with the smallest loss
# to leave out (none), SIZE as there; other flags are passed through.
set -e
. "$(dirname "$0")/../lib.sh"
ofa_size large
log_end=${LOG_END:-0.75}
drop_best=${DROP_BEST:+--drop-best-ratio=$DROP_BEST --drop-best-after=$CAPTION_DROP_AFTER}
RUN_SUFFIX=${DROP_BEST:+_dwdb}_el$log_end${RUN_SUFFIX:-} exec sh "$(dirname "$0")/train_caption_stage1.sh" \
    --criterion=adjust_label_smoothed_encouraging_loss --log-end="$log_end" --drop-worst-ratio=0.05 $drop_best "$@"
