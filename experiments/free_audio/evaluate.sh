#!/usr/bin/env bash
# Scores of the experiment, one row after another; what is finished is not redone.
#
#   ./experiments/free_audio/evaluate.sh TASKS_DIR              a row for each model, its state and its layout of scenes
#   SEEDS=3 ./experiments/free_audio/evaluate.sh TASKS_DIR      a quick look
#
# Scene tasks get ten seeds, event tasks and the learning curve (after 10% and 30% of the crops) three. The weights that
# came with the project are evaluated, or those just exported to their place; the curve needs the checkpoints of a
# training. Results land in free_audio/hear and free_audio/results. Events are embedded in true time order whatever the
# layout of scenes, so the rows of the published layout leave them out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tasks=$(realpath "${1:?TASKS_DIR is missing: the folder of HEAR tasks}")
out=free_audio/hear
of_kind() {
    (cd "$tasks" && { grep -l "\"embedding_type\": \"$1\"" -- */task_metadata.json || true; }) | xargs -r -n 1 dirname | xargs
}
scenes=$(of_kind scene)
events=$(of_kind event)

heads() {   # NAME SEEDS LAYOUT
    TASKS=$scenes SEEDS=$2 ./downstream_experiments.sh "$1" "$out"
    if [ "$3" = bands ] && [ -n "$events" ]; then TASKS=$events SEEDS=3 ./downstream_experiments.sh "$1" "$out"; fi
}
row() {     # NAME MODEL LAYOUT WEIGHTS SEEDS
    local embedded="$scenes $events"
    [ "$3" = bands ] || embedded=$scenes
    NAME=$1 LAYOUT=$3 MODEL=$4 TASKS=$embedded ./extract_features.sh "$tasks" "$out" "$2_tiny_free_audio"
    heads "$1" "$5" "$3"
}
table() {
    python stats_aggregation_v2.py --base_dir "$out/todo_audioset" --output_dir free_audio/results
}

./extract_features.sh "$tasks" "$out" benchmarks.log_mel_baseline
heads benchmarks.log_mel_baseline "${SEEDS:-10}" bands
for model in ssam ssast; do
    for layout in bands published; do
        row "${model}_pretrained_$layout" $model $layout "weights/${model}_tiny_free_audio" "${SEEDS:-10}"
        row "${model}_random_$layout" $model $layout untrained "${SEEDS:-10}"
        table
    done
done
for model in ssam ssast; do
    for share in 10:0 30:2; do      # percent of the crops : epoch of the checkpoint
        checkpoint=free_audio/${model}_tiny/checkpoints/checkpoint-${share#*:}.pth
        if [ -f "$checkpoint" ]; then
            row "${model}_${share%:*}_percent" $model bands "$checkpoint" 3
        else
            echo "left out: the learning curve at ${share%:*}% of $model, since $checkpoint is absent"
        fi
    done
done
table
