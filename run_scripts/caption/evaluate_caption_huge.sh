#!/bin/sh
# Captions of the test split, huge size.
SIZE=huge MASTER_PORT=${MASTER_PORT:-1083} exec sh "$(dirname "$0")/evaluate_caption.sh" "$@"
