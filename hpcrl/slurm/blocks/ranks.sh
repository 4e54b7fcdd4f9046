# A rank ignores warnings until it listens: one in its first second must not end it.
rank=(sh -c 'trap "" USR1 USR2; exec "$@"' rank
    python3 -m hpcrl train "${train[@]}" "${roles[@]}" --run-dir "$run_dir" --resume)
