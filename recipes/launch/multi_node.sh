#!/usr/bin/env bash
# One run on several machines without a scheduler: start this on every one of them, each with its own number.
# Usage: recipes/launch/multi_node.sh HEAD NUM_NODES NODE RECIPE [KEY=VALUE]...
#   HEAD: name or address of machine 0, which all others reach. NODE: 0 on the head, 1, 2, ... on the others.
#   For two machines: `multi_node.sh node0 2 0 recipes/llava_next/vicuna_7b/sft.yaml` on the first, `... node0 2 1 ...` on
#   the second. Each needs the same Rebus, recipe, data, models and `out` under the same paths (a shared file system).
# Environment: GPUS: of each machine (8). PORT: on the head (29500). NCCL_SOCKET_IFNAME: the network card, if NCCL picks
#   the wrong one.
# Where machines are joined by less than their GPUs inside, add: parallel.kind=hybrid parallel.shard_ranks=8 (whole
#   copies between machines, so that weights travel inside each alone). packs_per_step stays a multiple of all GPUs.
# Killed, or told to stop (SIGTERM, Ctrl-C): start the same line on all machines again; it goes on.
set -euo pipefail
if (($# < 4)); then
  sed -n '2,12s/^# //p' "$0" >&2
  exit 2
fi
head=$1 num_nodes=$2 node=$3
shift 3
exec torchrun \
  --nnodes "$num_nodes" --node-rank "$node" --nproc-per-node "${GPUS:-8}" \
  --master-addr "$head" --master-port "${PORT:-29500}" \
  -m rebus train "$@"
