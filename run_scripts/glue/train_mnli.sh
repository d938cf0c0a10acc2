#!/bin/sh
# GLUE, mnli: the grid of train_glue.sh.
exec sh "$(dirname "$0")/train_glue.sh" mnli "$@"
