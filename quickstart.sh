#!/usr/bin/env bash
# From nothing to a results table on a CPU, within 10 minutes on two cores after the downloads: sets up .venv (or
# $VENV), makes demo audio, turns it into archives, pretrains SSAM-Tiny briefly, and evaluates it on a small task beside
# plain log-mels and the SSAM-Tiny that comes with the project.
#
#     ./quickstart.sh                demo audio
#     ./quickstart.sh AUDIO_DIR      pretrains on your own recordings (many hours take longer)
#
# Everything is written to quickstart_output, to quickstart_output_<name of AUDIO_DIR> for your files, or to $OUT. If
# interrupted, rerun the same command to resume.
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
    --set num_epochs=$epochs batch_size=$batch opt.learning_rate=8e-3 opt.warmup_epochs="$(python -c "print($epochs / 10)")"

models="benchmarks.log_mel_baseline ssam_tiny_200_16x4 ssam_tiny_free_audio"

step "HEAR embeddings of the demo task: plain log-mels, the SSAM-Tiny just pretrained, and the shipped one"
for model in $models; do
    trained=; [ $model = ssam_tiny_200_16x4 ] && trained=$out/ssam_tiny
    MODEL=$trained ./extract_features.sh "$out/tasks" "$out/hear" $model
done

step "downstream training on two seeds"
for model in $models; do
    SEEDS=2 ./downstream_experiments.sh $model "$out/hear"
done

step "results"
python stats_aggregation_v2.py --base-dir "$out/hear/todo_audioset" --output-dir "$out/results"
cat <<END

The rows:
  benchmarks.log_mel_baseline     mean and deviation of log-mels: no encoder at all
  configs.ssam_tiny_200_16x4      the SSAM-Tiny just pretrained, on about $CROPS crops: a demonstration, minutes of training
  configs.ssam_tiny_free_audio    the SSAM-Tiny that comes with the project, pretrained on 32,000 crops of real audio
The demo task is easy for log-mels; s(m) only ranks the rows, from 0 for the lowest to 100 for the highest.

Done in $SECONDS s. Look at:
  $out/ssam_tiny/reconstructions.png    original | masked | reconstructed
  $out/ssam_tiny/curves.png             loss and learning rate
  $out/results                          the table
README.md and docs/ continue from here.
END
