#!/bin/sh
# Answers by exact ranking, base size: [val|test] [FLAGS].
SIZE=base exec sh "$(dirname "$0")/evaluate_vqa_allcand.sh" "$@"
