#!/usr/bin/env bash
# From nothing to a table of scores on a CPU, within 10 minutes on two cores after the downloads. Sets up .venv (or
# $VENV), generates demo audio, writes log-mel archives, pretrains SSAM-Tiny for a few minutes, and compares it on a
# small HEAR task with plain log-mels and with the pretrained SSAM-Tiny that comes with the project.
#
#     ./quickstart.sh                demo audio
#     ./quickstart.sh AUDIO_DIR      pretrain on your recordings: wav, flac, mp3, m4a ... (many hours take longer)
#
# Everything is written to quickstart_output, to quickstart_output_<name of AUDIO_DIR> for your own files, or to $OUT.
# If it is interrupted, run it again to resume.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ] || [ $# -gt 1 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit $(($# > 1))
fi
[ $# = 0 ] || [ -d "$1" ] || { echo "quickstart: $1 is not a folder of audio files" >&2; exit 1; }
audio=${1:+$(realpath "$1")}
out=$(realpath -m "${OUT:-$(dirname "$0")/quickstart_output${audio:+_$(basename "$audio")}}")
cd "$(dirname "$0")"
source ./set_up_environment.sh requirements.txt
SECONDS=0
step() { printf '\n== %s (%d s)\n' "$1" $SECONDS; }

step "demo audio and a small HEAR task"
compgen -G "$out/tasks/*/task_metadata.json" >/dev/null || python -m audio_mamba.data.synthetic "$out" --minutes 20
audio=${audio:-$out/audio}

step "log-mel archives of $audio"
python -m audio_mamba.data.prepare "$audio" "$out/archives" --clip-seconds 4

step "pretraining SSAM-Tiny"
# About CROPS crops of 2 s in all, at least one pass over the audio; small batches and a high rate, for a short run.
CROPS=${CROPS:-3000}
count='import json, sys; print(json.load(open(sys.argv[1]))["samples"])'
samples=$(python -c "$count" "$out/archives/manifest.json")
epochs=$((CROPS / samples > 0 ? CROPS / samples : 1))
batch=$((samples < 16 ? samples : 16))
python train.py --config configs.ssam_tiny_200_16x4 --workdir "$out/ssam_tiny" --data "$out/archives" --no-wandb \
    --print-freq 20 --num-workers 0 \
    --set num_epochs=$epochs batch_size=$batch opt.learning_rate=8e-3 \
    opt.warmup_epochs="$(python -c "print($epochs / 10)")"

if [ ! -f "$out/ssam_tiny/checkpoints/checkpoint-$((epochs - 1)).pth" ]; then  # it was told to stop, and has saved
    echo "quickstart: pretraining was interrupted; run the same command again to resume" >&2
    exit 1
fi

step "HEAR embeddings of the demo task: plain log-mels, the model trained here, and the shipped one"
NAME=plain_log_mels ./extract_features.sh "$out/tasks" "$out/hear" benchmarks.log_mel_baseline
NAME=trained_here LAYOUT=bands MODEL=$out/ssam_tiny ./extract_features.sh "$out/tasks" "$out/hear" ssam_tiny_200_16x4
NAME=shipped LAYOUT=bands MODEL=weights/ssam_tiny_free_audio \
    ./extract_features.sh "$out/tasks" "$out/hear" ssam_tiny_free_audio

step "classifier heads on two seeds"
for row in plain_log_mels trained_here shipped; do
    SEEDS=2 ./downstream_experiments.sh "$row" "$out/hear"
done

step "results"
# Its own table is for whole benchmarks: with one task s(m) says no more than the scores, and of ten seeds two were run.
log=$out/stats_aggregation.log
python stats_aggregation_v2.py --base-dir "$out/hear/todo_audioset" --output-dir "$out/results" >"$log" 2>&1 ||
    { cat "$log" >&2; exit 1; }
python - "$out/results/all_results.csv" "$((epochs * samples))" <<'END'
import sys

import pandas

results = pandas.read_csv(sys.argv[1])
rows = {
    "plain_log_mels": ("plain log-mels", "mean and standard deviation of each mel band: no model, the score to beat"),
    "trained_here": ("trained here", f"SSAM-Tiny, pretrained for minutes on {sys.argv[2]} crops of 2 s: a demo"),
    "shipped": ("shipped", "SSAM-Tiny as it comes with the project, pretrained for an hour on 32,000 crops"),
}
print("Test accuracy on the demo task (tell eight kinds of sound apart), in percent, mean of two seeds:\n")
for row, (name, meaning) in rows.items():
    print(f"  {name:<16}{100 * results.scores[results.exp == row].mean():5.1f}   {meaning}")
END
cat <<END

Done in $SECONDS s. Look at:
  $out/ssam_tiny/reconstructions.png    original | masked | reconstructed
  $out/ssam_tiny/curves.png             loss and learning rate
  $out/results                          the scores as tables and a figure
Next: README.md shows how to embed your own recordings; docs/pretraining.md how to train for real.
END
