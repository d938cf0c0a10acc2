#!/usr/bin/env bash
# Everything that needs a GPU, within 8 minutes on one 80 GB card: golden figures on the device, training, restart and
# evaluation of every task, updates and answers a second. Needs neither network nor Java; what is absent is named.
#   bash benchmarks/gpu.sh                      -> benchmarks/results/gpu_<card>_<date>.md
#   bash benchmarks/gpu.sh --device=cpu --tiny  tries the script out; flags go to python -m benchmarks.gpu
# WHEELS names a folder of wheels to install first, without an index; OFA_PYTHON the interpreter (.venv, else python3).
set -e
cd "$(dirname "$0")/.."
python=${OFA_PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --disable-pip-version-check --break-system-packages \
        --root-user-action=ignore "$WHEELS"/*.whl
fi
card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' ' '-' || true)
page=${OUT:-benchmarks/results}/gpu_${card:-none}_$(date +%F).md
[ -n "$card" ] || page=${OUT:-${TMPDIR:-/tmp}}/gpu_none.md
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
"$python" -m benchmarks.gpu --output="$page" "$@"
