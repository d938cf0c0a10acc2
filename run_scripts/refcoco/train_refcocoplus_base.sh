#!/bin/sh
# Boxes of referring expressions, RefCOCO+, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-6063} exec sh "$(dirname "$0")/train_refcocoplus.sh" "$@"
