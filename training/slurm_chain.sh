#!/bin/bash
# All stages, each as a job that starts when the one before has ended well:
#   bash training/slurm_chain.sh PROFILE SURVEY RUN [options of sbatch]
#   bash training/slurm_chain.sh gpu survey.h5 runs/gpu --account=stars --time=02:00:00
# Run it again to go on after a failure: stages that are complete end at once.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: bash training/slurm_chain.sh PROFILE SURVEY RUN [options of sbatch]" >&2
  exit 2
fi
profile=$1 survey=$2 run=$3
shift 3
test -e "$survey" || { echo "slurm_chain.sh: there is no survey $survey" >&2; exit 1; }
training=$(cd "$(dirname "$0")" && pwd)
options=("$@")

# submit NAME SCRIPT JOB_BEFORE [arguments]: prints the number of the job
submit() {
  local name=$1 script=$2 before=$3
  shift 3
  sbatch --parsable --job-name="$name" ${before:+--dependency=afterok:$before} "${options[@]}" \
    "$training/slurm_one_gpu.sh" "$training/$script" --profile "$profile" --data "$survey" \
    --output "$run/$name" "$@" | cut -d ';' -f 1
}

stage_1=$(submit 1_basemodel_synthetic 1_basemodel_synthetic/trainingAPOGEEGPU.py "")
stage_2=$(submit 2_realfinetune_firsthalf 2_realfinetune_firsthalf/finetuningAPOGEE.py "$stage_1" \
  --checkpoint "$run/1_basemodel_synthetic")
stage_3=$(submit 3_fefinetune_chunk 3_fefinetune_chunk/finetuningAPOGEE.py "$stage_2" \
  --checkpoint "$run/2_realfinetune_firsthalf")
baseline=$(submit basic_NN basic_NN/TrainingNN.py "")
echo "stages 1 to 3: jobs $stage_1, $stage_2, $stage_3; baseline: job $baseline"
