#!/usr/bin/env bash
# Trains the weights that the bundles ship, end to end and with a fixed seed; a second start resumes.
# Usage: bash weights.sh PYTHON brats GLIOMAS [FOLDER]    GLIOMAS: patients as BraTS unpacks them
#        bash weights.sh PYTHON vs CONTOURS [FOLDER]      CONTOURS: Vestibular-Schwannoma-SEG in its BIDS form
set -euo pipefail

root=$(cd "$(dirname "$0")" && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
task=$2
data=$(cd "$3" && pwd)
mkdir -p "${4:-runs/weights_$task}"
work=$(cd "${4:-runs/weights_$task}" && pwd)
bundle="$root/bundles/tissnet_$task"

precision=float32 # bfloat16 pays where the processor has instructions for it
grep -qs avx512_bf16 /proc/cpuinfo && precision=bfloat16
settings=(--dataset_dir "$work/cohort" --ckpt_dir "$work/models" --output_dir "$work/training" --precision "$precision")

train() { # config files in front of the recipe, then options
    (cd "$bundle" && "$python" -W ignore -m monai.bundle run training \
        --config_file "['configs/train.json',$1'configs/strong_augmentation.json','configs/recipe.json']" "${settings[@]}" "${@:2}")
}

if [ ! -f "$work/cohort/datalist.json" ]; then
    if [ "$task" = brats ]; then
        "$python" -m tissnet_components prepare_brats --root "$data" --out "$work/cohort/datalist.json" \
            --split "$bundle/docs/weights_split.csv"
    else
        "$python" -m tissnet_components phantom --task vs --out "$work/cohort" --cases 140 --seed 31 --variety 0.6 --contours "$data"
    fi
fi
perceptor=96 direct=128 cascade=(--epochs 128)
if [ "$task" = vs ]; then # both parts of the cascade start from direct segmentation
    perceptor=90 direct=150
    start="'$work/models/direct_image.pt'"
    cascade=(--epochs 84 --map_dropout 0.25 --start_from "{'generator':$start,'segmentor':$start}")
fi
train "'configs/direct_segmentation.json'," --epochs "$perceptor"
train "'configs/direct_segmentation.json'," --epochs "$direct" --input_keys "['image']" # to compare with, too
train "" "${cascade[@]}"
for name in perceptor model; do
    "$python" -m tissnet_components compact --weights "$work/models/$name.pt" --out "$bundle/models/$name.pt"
done
