#!/usr/bin/env bash
# Every test: makes .venv if there is none (or uses OFA_PYTHON), then pytest on two processes; arguments go to pytest.
set -e
. "$(dirname "$0")/lib.sh"
ofa_setup requirements-extras.txt
cd "$OFA_ROOT"
export OMP_NUM_THREADS=1 # two processes of one thread each
exec "$(ofa_python)" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
