# Preempted: Slurm requeues the job itself, unless the job is over before its time of grace is.
job=$(scontrol show job "$this" 2>/dev/null)
if grep -q 'PreemptTime=[0-9]' <<<"$job"; then
    say "preempted; Slurm requeues the job"
    trap '' USR1
    trap - TERM
    sleep 1h
fi
command=$(sed -n 's/^ *Command=//p' <<<"$job" | head -n 1)
again="HPCRL_RUN_DIR=$(printf %q "$run_dir") sbatch ${command:-SCRIPT $*}"
