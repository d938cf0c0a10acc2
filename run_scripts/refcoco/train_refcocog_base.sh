#!/bin/sh
# Boxes of referring expressions, RefCOCOg, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-6062} exec sh "$(dirname "$0")/train_refcocog.sh" "$@"
