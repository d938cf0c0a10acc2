#!/bin/sh
# Captions of the test split, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-1091} exec sh "$(dirname "$0")/evaluate_caption.sh" "$@"
