#!/usr/bin/env bash
# Sets up an environment in .venv (or $VENV) and runs the tests; arguments go to pytest:
#
#     ./run_tests.sh                       the default suite, within 10 minutes on two cores
#     ./run_tests.sh -m slow               the tests that take longer
#     ./run_tests.sh -m cuda -n 4          those that use a CUDA device, four at a time
#     VENV=none ./run_tests.sh -m cuda     in the current Python: no environment is made, nothing is installed
#
# Test files that need a missing package are skipped.
set -euo pipefail
cd "$(dirname "$0")"
source ./set_up_environment.sh requirements.txt requirements-dev.txt
# One thread per process, and a process per core (-n 0 for one after the other): with more, tests crawl.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -n auto --dist worksteal "$@"
