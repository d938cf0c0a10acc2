#!/bin/sh
# Captioning, stage 2, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-1062} exec sh "$(dirname "$0")/train_caption_stage2.sh" "$@"
