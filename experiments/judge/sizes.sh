#!/usr/bin/env bash
# How heads of the published grid, of GRID=small, and logistic regression do with few clips: table and figure.
#
#   ./experiments/judge/sizes.sh PACKAGES_DIR OUT_DIR       after experiments.judge.build; what is finished is not redone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
packages=$(realpath "${1:?PACKAGES_DIR is missing: the folder of experiments.judge.build}")
out=${2:?OUT_DIR is missing: a folder for tasks, heads and the figure}
mkdir -p "$out"
out=$(realpath "$out")
model=ssam_tiny_free_audio
python -m experiments.judge.sizes make "$packages" "$out/tasks"
for grid in published small; do
    LAYOUT=bands POOLING=mean_std ./extract_features.sh "$out/tasks" "$out/$grid" $model
    SEEDS=2 GRID=$grid ./downstream_experiments.sh $model "$out/$grid"
done
python -m experiments.judge "$out/tasks" --model $model --features mean_std --out "$out/judge"
python -m experiments.judge.sizes curve "$out/sizes.png" --judge "$out/judge/tasks.csv" \
    --heads "published grid=$out/published" --heads "small grid=$out/small" | tee "$out/sizes.md"
