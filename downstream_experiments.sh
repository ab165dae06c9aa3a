#!/usr/bin/env bash
# Downstream heads of one model on ten seeds, from the embeddings of extract_features.sh; a finished run is not redone.
#
#   ./downstream_experiments.sh CONFIG OUTPUT_DIR
#   SEEDS=2 GRID='{"max_epochs": [50]}' ./downstream_experiments.sh ssam_tiny_200_16x4 out
#   JOBS=8 ./downstream_experiments.sh ssam_tiny_200_16x4 out         so many side by side
#   REDO=1 ./downstream_experiments.sh ssam_tiny_200_16x4 out         heads on replaced embeddings are trained again
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ "${REDO-}" = 0 ] && REDO=
exec python -m external_sources.downstream \
    ${SEEDS:+--seeds "$SEEDS"} ${GRID:+--grid "$GRID"} ${JOBS:+--jobs "$JOBS"} \
    ${TASKS:+--tasks "$TASKS"} ${REDO:+--redo} "$@"
