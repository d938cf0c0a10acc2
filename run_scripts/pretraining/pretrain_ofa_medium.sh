#!/bin/sh
# Multitask pretraining, medium size.
SIZE=medium MASTER_PORT=${MASTER_PORT:-1052} exec sh "$(dirname "$0")/pretrain_ofa_large.sh" "$@"
