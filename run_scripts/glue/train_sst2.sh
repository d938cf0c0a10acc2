#!/bin/sh
# GLUE, sst2: the grid of train_glue.sh.
exec sh "$(dirname "$0")/train_glue.sh" sst2 "$@"
