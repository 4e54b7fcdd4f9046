# Preempted: Slurm requeues the job itself, unless the job is over before its time of grace is, or the site's way is to
# cancel what it preempts.
job=$(scontrol show job "$this" 2>/dev/null)
if grep -q 'PreemptTime=[0-9]' <<<"$job"; then
    if scontrol show partition "$SLURM_JOB_PARTITION" | grep -q 'PreemptMode=CANCEL'; then
        warned=limit
    else
        say "preempted; Slurm requeues the job"
        trap '' USR1
        trap - TERM
        sleep 1h
    fi
fi
command=$(sed -n 's/^ *Command=//p' <<<"$job" | head -n 1)
again="HPCRL_RUN_DIR=$(printf %q "$run_dir") sbatch ${command:-SCRIPT $*}"
