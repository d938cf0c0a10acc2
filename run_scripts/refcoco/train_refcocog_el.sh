#!/bin/sh
# Boxes of referring expressions with the encouraging loss, RefCOCOg.
DATASET=refcocog MASTER_PORT=${MASTER_PORT:-6052} exec sh "$(dirname "$0")/train_refcoco_el.sh" "$@"
