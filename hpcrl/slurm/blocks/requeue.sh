# Requeue, once: by Slurm's own means, else as a new job, else by hand. Never a job that was cancelled meanwhile; where
# Slurm does not tell, one that was warned ahead of its limit was not.
trap '' USR1 TERM
state=$(sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' <<<"$job" | head -n 1)
if [ "${state:-$warned}" != RUNNING ] && [ "${state:-$warned}" != limit ]; then
    say "saved, and not requeued since the job is ${state:-over}; to go on: $again"
elif [ "$restarts" -ge "$max_restarts" ]; then
    say "saved, and not requeued after $restarts restarts; to go on: $again"
elif scontrol requeue "$SLURM_JOB_ID"; then
    say "saved; requeued"
    exit 0
elif unset SLURM_RESTART_COUNT && export HPCRL_RUN_DIR=$run_dir HPCRL_RESTARTS=$((restarts + 1)) &&
    sbatch --dependency=afterany:"$SLURM_JOB_ID" "$0" "$@"; then
    say "saved; the job above goes on"
    exit 0
else
    say "saved, and not requeued since Slurm refuses; to go on: $again"
fi
exit 1
