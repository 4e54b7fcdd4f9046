on_every_node() {
    timeout "${patience:-600}" srun --overlap --mpi=none --kill-on-bad-exit=1 \
        --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "$@"
}
