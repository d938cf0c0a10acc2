#!/bin/sh
# Boxes of referring expressions with the encouraging loss, RefCOCO+.
DATASET=refcocoplus MASTER_PORT=${MASTER_PORT:-6053} exec sh "$(dirname "$0")/train_refcoco_el.sh" "$@"
