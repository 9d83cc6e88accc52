#!/bin/bash
# Label an atlas by an array of SLURM jobs, then put the shards together:
#
#     array=$(sbatch --parsable --array=1-8 examples/slurm_annotate.sh PROJECT LABELS atlas/*.h5ad)
#     sbatch --dependency=afterok:$array --wrap "canal collect LABELS --root PROJECT"
#
# PROJECT, LABELS and the inputs lie on a file system that all nodes see. A job that was killed is submitted
# again as it was: it labels only what is missing.
#SBATCH --job-name=canal-annotate
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
set -euo pipefail
project=$1 labels=$2
shift 2
exec canal annotate "$@" --output "$labels" --root "$project" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --threads "${SLURM_CPUS_PER_TASK:-4}"
