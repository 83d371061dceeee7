#!/usr/bin/env bash
# All that has never run on a card, checked and measured in one call of at most ten minutes:
#     benchmarks/gpu.sh [--vllm PYTHON_WITH_VLLM] [--out results/gpu.json]
#     benchmarks/gpu.sh --rehearse     # the same parts on this machine's CPU, small, in some minutes
# The Python is $PYTHON, else the one of .venv, else python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" benchmarks/gpu.py "$@"
