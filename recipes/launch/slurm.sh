#!/usr/bin/env bash
# One run under Slurm, on one node or several: one torchrun a node, which starts a process a GPU.
# Usage: sbatch [--nodes 2] [--time 24:00:00] recipes/launch/slurm.sh RECIPE [KEY=VALUE]...
#   From the folder that the recipe's paths start from, with Rebus' environment active (or name it in VENV).
#   All nodes see the same data, models and `out` (a shared file system).
# Time limit: 3 minutes before it Slurm sends SIGTERM; the run saves a state and stops. Submit the same line again and
#   it goes on. A job that was preempted is queued again by itself (--requeue).
# Where nodes are joined by less than their GPUs inside, add: parallel.kind=hybrid parallel.shard_ranks=8
#SBATCH --job-name=rebus
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
if (($# < 1)); then
  sed -n '2,8s/^# //p' "$0" >&2
  exit 2
fi
if [[ -n ${VENV:-} ]]; then
  source "$VENV/bin/activate"
fi
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*} # not `| head -n 1`: a pipe that closes early fails the job now and then (SIGPIPE under pipefail)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node must not meet
gpus=${SLURM_GPUS_ON_NODE:-8}
exec srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port" \
  -m rebus train "$@"
