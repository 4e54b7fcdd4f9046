on_every_node() {
    local first=$SLURM_JOB_NUM_NODES_HET_GROUP_0 second=$SLURM_JOB_NUM_NODES_HET_GROUP_1
    timeout "${patience:-600}" srun --overlap --mpi=none --kill-on-bad-exit=1 \
        --het-group=0 --nodes="$first" --ntasks="$first" --ntasks-per-node=1 "$@" : \
        --het-group=1 --nodes="$second" --ntasks="$second" --ntasks-per-node=1 "$@"
}
