#!/bin/sh
# Visual entailment, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-7061} exec sh "$(dirname "$0")/train_snli_ve.sh" "$@"
