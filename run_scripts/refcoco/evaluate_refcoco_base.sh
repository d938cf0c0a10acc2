#!/bin/sh
# Boxes of the eight splits of RefCOCO, RefCOCO+ and RefCOCOg, base size.
SIZE=base MASTER_PORT=${MASTER_PORT:-6091} exec sh "$(dirname "$0")/evaluate_refcoco.sh" "$@"
