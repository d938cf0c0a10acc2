#!/bin/sh
# Entailment of a split, base size: [dev|test] [FLAGS].
SIZE=base MASTER_PORT=${MASTER_PORT:-7091} exec sh "$(dirname "$0")/evaluate_snli_ve.sh" "$@"
