#!/usr/bin/env bash
# Every test: makes .venv if there is none (or uses OFA_PYTHON), then pytest; other arguments go to pytest.
set -e
. "$(dirname "$0")/lib.sh"
ofa_setup
cd "$OFA_ROOT"
exec "$(ofa_python)" -m pytest "$@"
