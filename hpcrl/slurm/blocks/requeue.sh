# Requeue, once: by Slurm's own means, else as a new job, else by hand. Never a job that was cancelled meanwhile.
trap '' USR1 TERM
state=$(sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' <<<"$job" | head -n 1)
if [ -z "$state" ] && [ "$warned$lost" != end ]; then
    state=RUNNING # as far as can be known
fi
if [ "$state" != RUNNING ]; then
    say "not requeued since the job is ${state:-over}; to go on: $again"
elif [ "$restarts" -ge "$max_restarts" ]; then
    say "not requeued after $restarts restarts; to go on: $again"
elif scontrol requeue "$this"; then
    say "requeued"
    exit 0
elif unset SLURM_RESTART_COUNT && export HPCRL_RUN_DIR=$run_dir HPCRL_RESTARTS=$((restarts + 1)) &&
    sbatch --dependency=afterany:"$this" ${SLURM_ARRAY_TASK_ID:+--array="$SLURM_ARRAY_TASK_ID"} "$0" "$@"; then
    say "the job above goes on"
    exit 0
else
    say "not requeued since Slurm refuses; to go on: $again"
fi
exit 1
