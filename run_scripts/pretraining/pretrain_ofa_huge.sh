#!/bin/sh
# Multitask pretraining, huge size.
SIZE=huge MASTER_PORT=${MASTER_PORT:-1052} exec sh "$(dirname "$0")/pretrain_ofa_large.sh" "$@"
