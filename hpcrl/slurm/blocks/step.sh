# One step on all nodes. hpcrl gives every rank its cores itself.
(
    trap '' USR1 TERM
    [ -z "$warned" ] || exit 0 # too late to begin
    exec srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=none \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${rank[@]}"
) &
step=$!
