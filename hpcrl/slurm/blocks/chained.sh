if [ "$(cat "$run_dir/outcome" 2>/dev/null)" = finished ]; then
    say "an earlier job of the chain has finished the run"
    exit 0
fi
