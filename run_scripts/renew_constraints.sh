#!/usr/bin/env bash
# Writes the requirements files anew from pyproject.toml, and constraints.txt: the newest versions that they allow, for
# Python 3.11 and 3.12. Installs them into .venv and runs the suite (arguments go to pytest): commit the file if it is green.
set -e
. "$(dirname "$0")/lib.sh"
cd "$OFA_ROOT"
"$(ofa_python)" run_scripts/write_requirements.py
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$(ofa_python)" -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check uv
# What pip's own configuration caps cannot be installed here, so it cannot be tested either.
caps=$("$tools/bin/python" -m pip config list | sed -n "s/^[^=]*\.constraint='\(.*\)'$/--constraint=\1/p")
"$tools/bin/uv" pip compile --quiet --upgrade --universal --python-version=3.11 --no-annotate $caps \
    --custom-compile-command=run_scripts/renew_constraints.sh --output-file=constraints.txt \
    requirements.txt requirements-extras.txt
unset OFA_PYTHON OFA_NEWEST
exec bash run_scripts/test.sh "$@"
