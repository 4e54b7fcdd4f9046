# What an earlier start left on a node that died would keep srun from starting ranks there: a folder of its pmix plugin.
if [ "$restarts" -gt 0 ] && [[ $mpi == pmix* ]]; then
    folder=$(scontrol show config 2>/dev/null | sed -n 's/^TmpFS *= *//p')
    patience=60 on_every_node bash -c 'rm -rf "${1//%n/$SLURMD_NODENAME}/spmix_appdir_"{,*_}"$2".*' \
        leftovers "${folder:-/tmp}" "$SLURM_JOB_ID"
fi
