#!/bin/sh
# Answers by exact ranking on several machines: [val|test] [FLAGS].
# The recipe has 4 machines of 8 GPUs: WORKER_CNT=4 MASTER_ADDR=<first machine> RANK=0..3 on each.
case ${1:--} in -*) split=val ;; *) split=$1 && shift ;; esac
MASTER_PORT=${MASTER_PORT:-8216} exec sh "$(dirname "$0")/evaluate_vqa_allcand.sh" "$split" \
    --batch-size=4 --valid-batch-size=20 "$@"
