#!/bin/sh
# Captioning, stage 1, with the encouraging loss and without the best tokens.
DROP_BEST=${DROP_BEST:-0.05} exec sh "$(dirname "$0")/train_caption_stage1_el.sh" "$@"
