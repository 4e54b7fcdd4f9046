if [ "$status" -eq 0 ] && [ "$(cat "$run_dir/outcome")" = finished ]; then
    exit 0
fi
