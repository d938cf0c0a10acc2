#!/bin/sh
# Answers by exact ranking on several machines, base size: [val|test] [FLAGS].
SIZE=base MASTER_PORT=${MASTER_PORT:-8316} exec sh "$(dirname "$0")/evaluate_vqa_allcand_distributed.sh" "$@"
