#!/bin/bash
# Several nodes of four GPUs: sbatch --nodes=2 training/slurm_nodes.sh SCRIPT [arguments]
#   sbatch --nodes=2 training/slurm_nodes.sh training/1_basemodel_synthetic/trainingAPOGEEGPU.py \
#       --profile paper --data survey.h5 --output runs/paper/1_basemodel_synthetic
# Python, pre-emption and requeue as in slurm_one_gpu.sh.
#SBATCH --job-name=stellarperceptron
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# One task a GPU, so that SLURM's notice reaches each of them; they meet at the first node.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # not handed on by itself since SLURM 22.05
srun "${PYTHON:-.venv/bin/python}" "$@" && code=0 || code=$?
# A script that is done leaves a file `complete`. One that was told to stop has ended with 0, or, told
# before it could listen, with 138 (SIGUSR1).
output=$(printf '%s\n' "$@" | sed 's/^--output=/--output\n/' | grep -A1 -x -- --output | tail -n 1)
if [ ! -f "$output/complete" ] && { [ "$code" -eq 0 ] || [ "$code" -eq 138 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
