#!/usr/bin/env bash
# Fine-tuning against scratch and against the probe, on the same clips; what is finished is not redone.
#
#   ./experiments/finetuning/run.sh TASKS_DIR OUT_DIR
#
# OUT_DIR/TASK/ gets probe/, frozen-0/, random-0/ and pretrained-SEED/; OUT_DIR/seconds.csv the processor time of each.
# Two runs go side by side, one thread each. From scratch also means that the head starts from zeros. The probe trains on
# training and validation clips, all others on training clips alone; frozen-0 is fine-tuning before its first step,
# logistic regression on the same clips. Chords are trained without augment.freq_shift, which would make them others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tasks=$(realpath "${1:?TASKS_DIR is missing: the folder of HEAR tasks}")
out=${2:?OUT_DIR is missing: a folder for the runs}
mkdir -p "$out"
out=$(realpath "$out")
model=ssam_tiny_free_audio
export OMP_NUM_THREADS=1

finished() { [ -e "$out/$1/results.json" ] || [ -e "$out/$1/results.csv" ]; }    # TASK/NAME
timed() {   # TASK NAME COMMAND...
    local task=$1 name=$2 TIMEFORMAT="%U %S" status=0
    shift 2
    if finished "$task/$name"; then return; fi
    mkdir -p "$out/$task"
    # A line for each start: what an interrupted run took counts too.
    { time "$@" > "$out/$task/$name.log" 2>&1; } 2>> "$out/$task/$name.time" || status=$?
    if [ $status != 0 ] || ! finished "$task/$name"; then  # a training that is told to stop has status 0
        echo "run.sh: $task/$name did not finish, see $out/$task/$name.log; the same command continues" >&2
        exit 1
    fi
    echo "$task,$name,$(awk '{sum += $1 + $2} END {print sum}' "$out/$task/$name.time")" >> "$out/seconds.csv"
}
finetuned() {   # TASK INIT SEED FRAMES CHANGES [OPTION...]
    local task=$1 name=$2 seed=$3 frames=$4 changes=$5 init=$2
    shift 5
    case $name in
        random) changes="$changes head.start=zeros" ;;
        frozen) changes="opt.learning_rate=0 opt.warmup_epochs=0 num_epochs=1" init=pretrained ;;
    esac
    # shellcheck disable=SC2086
    timed "$task" "$name-$seed" python finetune.py --data "$tasks/$task" --model $model --init "$init" --seed "$seed" \
        --workdir "$out/$task/$name-$seed" --precision bfloat16 --num-workers 0 --no-wandb "$@" \
        --set data.num_frames="$frames" $changes
}
compare() {     # TASK FRAMES SEEDS CHANGES [OPTION...]; the shortest input that holds a clip, in frames of 10 ms
    local task=$1 frames=$2 seeds=$3 changes=$4 seed
    shift 4
    timed "$task" probe python -m audio_mamba.hear_api.probe "$tasks/$task" --model $model --pooling mean_std \
        --out "$out/$task/probe"
    finetuned "$task" frozen 0 "$frames" "$changes" "$@"
    finetuned "$task" random 0 "$frames" "$changes" "$@" &
    for seed in $(seq 0 $((seeds - 1))); do finetuned "$task" pretrained "$seed" "$frames" "$changes" "$@"; done
    wait $!
}
compare guitar_chords-v1-full 200 3 augment.freq_shift=0
compare spoken_letters-v1-full 152 1 "" --folds all
compare drum_hits-v1-full 100 3 "" --folds all
python -m experiments.finetuning.paired "$out" | tee "$out/paired.md"
