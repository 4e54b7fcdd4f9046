unset SLURM_TASK_EPILOG
patience=30 on_every_node rm -rf "$staged" 2>/dev/null
rm -f "$run_dir/unstage"
trap - EXIT
