#!/bin/bash
# One GPU: sbatch training/slurm_one_gpu.sh SCRIPT [arguments of the script]
#   sbatch training/slurm_one_gpu.sh training/1_basemodel_synthetic/trainingAPOGEEGPU.py \
#       --profile gpu --data survey.h5 --output runs/gpu/1_basemodel_synthetic
# It runs .venv/bin/python; another one, such as conda's, with PYTHON=$(command -v python) sbatch ...
# Sixty seconds before the limit, or before pre-emption, the script is told (SIGUSR1), saves and
# ends; the job then queues itself again and goes on from there.
#SBATCH --job-name=stellarperceptron
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=24G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# The job itself waits for srun: without `--signal=B:` SLURM tells the script, not this shell.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # not handed on by itself since SLURM 22.05
srun "${PYTHON:-.venv/bin/python}" "$@" && code=0 || code=$?
# A script that is done leaves a file `complete`. One that was told to stop has ended with 0, or, told
# before it could listen, with 138 (SIGUSR1).
output=$(printf '%s\n' "$@" | sed 's/^--output=/--output\n/' | grep -A1 -x -- --output | tail -n 1)
if [ ! -f "$output/complete" ] && { [ "$code" -eq 0 ] || [ "$code" -eq 138 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
