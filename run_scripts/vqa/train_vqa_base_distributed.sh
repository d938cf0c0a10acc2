#!/bin/sh
# Visual question answering, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-8314} exec sh "$(dirname "$0")/train_vqa_distributed.sh" "$@"
