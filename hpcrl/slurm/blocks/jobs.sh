echo "$this" >>"$run_dir/jobs" # for hpcrl status
