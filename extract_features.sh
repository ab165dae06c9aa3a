#!/usr/bin/env bash
# HEAR embeddings of every task in TASKS_DIR; a finished task is not redone.
#
#   ./extract_features.sh TASKS_DIR OUTPUT_DIR [CONFIG...]
#   PT_MAMBA_MODEL_DIR=weights ./extract_features.sh tasks out ssam_tiny_200_16x4
#   MODEL=checkpoint-99.pth    ./extract_features.sh tasks out ssam_tiny_200_16x4
#   NAME=epoch_10 LAYOUT=bands MODEL=checkpoint-9.pth ./extract_features.sh tasks out ssam_tiny_200_16x4
#   CACHE=/scratch/tasks.16k   ./extract_features.sh tasks out     where archives are unpacked and 48 kHz is resampled
#   REDO=1 ./extract_features.sh tasks out ssam_tiny_200_16x4      tasks whose files have changed are embedded again
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ "${REDO-}" = 0 ] && REDO=
exec python -m external_sources.embeddings \
    ${TASKS:+--tasks "$TASKS"} ${MODEL:+--model "$MODEL"} ${NAME:+--name "$NAME"} ${LAYOUT:+--layout "$LAYOUT"} \
    ${CACHE:+--cache "$CACHE"} ${REDO:+--redo} "$@"
