say() { echo "hpcrl: $*"; }
restarts=$((${SLURM_RESTART_COUNT:-0} + ${HPCRL_RESTARTS:-0}))
say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restarts: $restarts, in $run_dir"
mkdir -p "$run_dir"
