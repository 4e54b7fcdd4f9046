echo "$SLURM_JOB_ID" >>"$run_dir/jobs" # for hpcrl status
