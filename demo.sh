#!/usr/bin/env bash
# The whole system on a simulated cohort: data, perceptor, direct segmentation, TISS-Net, evaluation, one unseen case, report.
# Usage: bash demo.sh PYTHON [FOLDER]. Takes about a quarter of an hour on two CPU cores; a second start resumes.
set -euo pipefail

root=$(cd "$(dirname "$0")" && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
mkdir -p "${2:-demo}"
demo=$(cd "${2:-demo}" && pwd)
bundle="$root/bundles/tissnet_brats"
log="$demo/log.txt"

# bfloat16 pays where the processor has instructions for it
precision=float32
grep -qs avx512_bf16 /proc/cpuinfo && precision=bfloat16

settings=(--dataset_dir "$demo/cohort" --ckpt_dir "$demo/models" --spacing_mm "[2.0,2.0,2.0]" --precision "$precision")
budget=(--val_interval 16 --picture_interval 16 --output_dir "$demo/training" --epochs 32)

say() { printf '\n[%s/7] %s (%d min %d s since the start)\n' "$1" "$2" $((SECONDS / 60)) $((SECONDS % 60)); }

bundle_run() { # config files, then options; the whole output goes to the log, the progress bars to the screen
    (cd "$bundle" && "$python" -W ignore -m monai.bundle run "$@") 2> >(tee -a "$log" >&2) >> "$log"
}

say 1 "simulating a cohort of 24 patients"
[ -f "$demo/cohort/datalist.json" ] || "$python" -m tissnet_components phantom --task brats --out "$demo/cohort" --cases 24 --seed 1

# the recipe of the shipped weights, for fewer epochs of coarser voxels
train() { bundle_run training --config_file "['configs/train.json',$1'configs/strong_augmentation.json','configs/recipe.json']" "${settings[@]}" "${budget[@]}" "${@:2}"; }
direct="'configs/direct_segmentation.json',"

say 2 "training the perceptor: segmentation from the real FLAIR"
train "$direct"

say 3 "training direct segmentation from T1, ceT1 and T2, to compare with"
train "$direct" --input_keys "['image']"

say 4 "training TISS-Net"
train ""

say 5 "evaluating on unseen patients"
evaluate() { bundle_run evaluating --config_file "['configs/train.json',$1'configs/evaluate.json','configs/recipe.json']" "${settings[@]}" --output_dir "$demo/results/$2" "${@:3}"; }
evaluate "" "TISS-Net"
evaluate "$direct" "direct segmentation" --input_keys "['image']"
evaluate "$direct" "real FLAIR"

say 6 "segmenting one unseen patient from three files, no label given"
"$python" -m tissnet_components phantom --task brats --out "$demo/unseen" --cases 3 --seed 2
patient="$demo/unseen/Phantom_0001/Phantom_0001"
"$python" -W ignore -m tissnet_components segment --bundle "$bundle" --weights "$demo/models/model.pt" \
    --t1 "${patient}_t1.nii.gz" --t1ce "${patient}_t1ce.nii.gz" --t2 "${patient}_t2.nii.gz" --case unseen --out "$demo/results" --overwrite

say 7 "writing the report"
"$python" -m tissnet_components report --runs "$demo/results" --out "$demo/report.html" --title "TISS-Net demo (simulated patients)"
printf '\nDone in %d min. Open %s, and %s in any NIfTI viewer.\n' $((SECONDS / 60)) "$demo/report.html" "$demo/results/unseen"
