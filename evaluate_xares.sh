#!/usr/bin/env bash
# X-ARES scores (MLP and kNN) of one model on every task in TASKS_DIR; a finished task is not redone.
#
#   ./evaluate_xares.sh CONFIG TASKS_DIR OUTPUT_DIR
#   MODEL=checkpoint-99.pth NAME=epoch_100 ./evaluate_xares.sh ssam_tiny_200_16x4 env out
#   DOWNLOAD=1 TASKS="esc50 gtzan_genre"   ./evaluate_xares.sh ssam_tiny_200_16x4 env out      archives from Zenodo
#   REDO=1 ./evaluate_xares.sh ssam_tiny_200_16x4 env out      results of other weights or files are replaced
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ "${REDO-}" = 0 ] && REDO=
[ "${DOWNLOAD-}" = 0 ] && DOWNLOAD=
exec python -m external_sources.xares_run \
    ${TASKS:+--tasks "$TASKS"} ${MODEL:+--model "$MODEL"} ${NAME:+--name "$NAME"} \
    ${DOWNLOAD:+--download} ${REDO:+--redo} "$@"
