#!/bin/sh
# Captioning, stage 1, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-1061} exec sh "$(dirname "$0")/train_caption_stage1.sh" "$@"
