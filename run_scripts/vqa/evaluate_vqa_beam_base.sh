#!/bin/sh
# Answers by beam search over the candidates, base size: [val|test] [FLAGS].
SIZE=base MASTER_PORT=${MASTER_PORT:-8182} exec sh "$(dirname "$0")/evaluate_vqa_beam.sh" "$@"
