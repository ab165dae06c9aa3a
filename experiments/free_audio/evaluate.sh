#!/usr/bin/env bash
# Scores of the experiment, one row after another; what is finished is not redone.
#
#   ./experiments/free_audio/evaluate.sh TASKS_DIR              a row for each model, its state and its layout of scenes
#   SEEDS=3 ./experiments/free_audio/evaluate.sh TASKS_DIR      a quick look
#
# Scene tasks get ten seeds, event tasks three. The weights that came with the project are evaluated, or those just
# exported to their place; the learning curve (after 10% and 30% of the crops, three seeds) and the rows with
# masked_positions need the work folders of a training. Results land in free_audio/hear and free_audio/results. Events
# are embedded in true time order whatever the layout of scenes, so only the main rows in that layout have them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tasks=$(realpath "${1:?TASKS_DIR is missing: the folder of HEAR tasks}")
out=free_audio/hear
of_kind() {
    (cd "$tasks" && { grep -lE "\"embedding_type\": *\"$1\"" -- */task_metadata.json || true; }) | xargs -r -n 1 dirname | xargs
}
scenes=$(of_kind scene)
events=$(of_kind event)
if [ -z "$scenes$events" ]; then
    echo "TASKS_DIR: $tasks has no unpacked HEAR task of scenes or events" >&2
    exit 1
fi

# An empty TASKS would choose all tasks, so where there are none nothing is run.
heads() {   # NAME SEEDS [EVENT_TASKS]
    if [ -n "$scenes" ]; then TASKS=$scenes SEEDS=$2 ./downstream_experiments.sh "$1" "$out"; fi
    if [ -n "${3-}" ]; then TASKS=$3 SEEDS=3 ./downstream_experiments.sh "$1" "$out"; fi
}
row() {     # NAME MODEL LAYOUT WEIGHTS SEEDS [EVENT_TASKS]; POOLING and OVERLAP as for extract_features.sh
    if [ -z "$scenes${6-}" ]; then return; fi
    NAME=$1 LAYOUT=$3 MODEL=$4 TASKS="$scenes ${6-}" ./extract_features.sh "$tasks" "$out" "$2_tiny_free_audio"
    heads "$1" "$5" "${6-}"
}
if_trained() {      # WEIGHTS NAME MODEL SEEDS
    if [ -e "$1" ]; then row "$2" "$3" bands "$1" "$4"; else echo "left out: $2, since $1 is absent"; fi
}
table() {
    python stats_aggregation_v2.py --base_dir "$out/todo_audioset" --output_dir free_audio/results
}

./extract_features.sh "$tasks" "$out" benchmarks.log_mel_baseline
heads benchmarks.log_mel_baseline "${SEEDS:-10}" "$events"
for model in ssam ssast; do
    for layout in bands published; do
        [ $layout = bands ] && its_events=$events || its_events=
        row "${model}_pretrained_$layout" $model $layout "weights/${model}_tiny_free_audio" "${SEEDS:-10}" "$its_events"
        row "${model}_random_$layout" $model $layout untrained "${SEEDS:-10}" "$its_events"
        table
    done
done
for model in ssam ssast; do
    export POOLING=mean_std
    row "${model}_pretrained_mean_std" $model bands "weights/${model}_tiny_free_audio" "${SEEDS:-10}"
    row "${model}_random_mean_std" $model bands untrained "${SEEDS:-10}"
    unset POOLING
done
if [ -n "$events" ]; then
    NAME=ssam_overlap_50 OVERLAP=0.5 LAYOUT=bands MODEL=weights/ssam_tiny_free_audio TASKS=$events \
        ./extract_features.sh "$tasks" "$out" ssam_tiny_free_audio
    TASKS=$events SEEDS=3 ./downstream_experiments.sh ssam_overlap_50 "$out"
fi
if [ -n "$scenes" ] && python -c "import opensmile" 2> /dev/null; then
    NAME=eGeMAPSv02 MODEL=eGeMAPSv02 TASKS=$scenes ./extract_features.sh "$tasks" "$out" benchmarks.opensmile_features
    heads eGeMAPSv02 "${SEEDS:-10}"
else
    echo "left out: eGeMAPSv02, which needs scene tasks and openSMILE (benchmarks/requirements-opensmile.txt)"
fi
for model in ssam ssast; do
    if_trained free_audio/${model}_tiny/checkpoints/checkpoint-0.pth "${model}_10_percent" $model 3
    if_trained free_audio/${model}_tiny/checkpoints/checkpoint-2.pth "${model}_30_percent" $model 3
done
for model in ssam ssast; do
    if_trained free_audio/${model}_positions_tiny/checkpoints "${model}_positions_pretrained_bands" $model "${SEEDS:-10}"
done
table
