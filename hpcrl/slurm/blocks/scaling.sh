# This element's layout, a job step for each repeat. What is in the file already is not measured again.
listening() { true; }
export HPCRL_RESULTS=${HPCRL_RESULTS:-$run_dir/scaling-$this.jsonl}
read -r nodes ranks <<<"${layouts[$SLURM_ARRAY_TASK_ID]}"
launch="srun --mpi=$mpi --kill-on-bad-exit=1 --cpu-bind=none --nodes=$nodes --ntasks=$ranks --ntasks-per-node=$((ranks / nodes))"
(
    trap '' USR1 TERM
    exec python3 -m benchmarks.scaling --launch "$launch" \
        --out "$HPCRL_RESULTS" "${benchmark[@]}"
) &
step=$!
