# The id of an array's last element alone would name the whole array.
this=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
this=${this:-$SLURM_JOB_ID}
unset SLURM_EXPORT_ENV # --export=NONE was meant for this script, not for its steps
say() { echo "hpcrl: $*"; }
restarts=$((${SLURM_RESTART_COUNT:-0} + ${HPCRL_RESTARTS:-0}))
say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restarts: $restarts, in $run_dir"
mkdir -p "$run_dir"
