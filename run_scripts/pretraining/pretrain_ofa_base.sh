#!/bin/sh
# Multitask pretraining, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-1052} exec sh "$(dirname "$0")/pretrain_ofa_large.sh" "$@"
