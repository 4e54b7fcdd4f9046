# A node that dies ends the ranks, often before Slurm notices: the job would be over by then, and not be requeued.
lost=
if [ "$status" -ne 0 ] && ! patience=60 on_every_node true 2>/dev/null &&
    timeout 60 srun --overlap --mpi=none --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" true; then
    say "the ranks ended with status $status, and a node does not answer"
    lost=yes
fi
