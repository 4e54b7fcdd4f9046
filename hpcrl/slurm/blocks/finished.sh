if [ "$status" -eq 0 ] && [ "$(cat "$run_dir/outcome" 2>/dev/null)" = finished ]; then
    exit 0
fi
