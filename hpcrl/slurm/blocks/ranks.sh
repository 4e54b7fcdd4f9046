# A rank ignores warnings until it listens: one in its first second must not end it. When rank 0 writes the outcome
# "running", all of them listen. What the user says of roles comes last, and wins.
listening() { [ "$run_dir/outcome" -nt "$run_dir/jobs" ]; }
rank=(sh -c 'trap "" USR1 USR2; exec "$@"' rank
    python3 -m hpcrl train "${train[0]}" "${roles[@]}" "${train[@]:1}" --run-dir "$run_dir" --resume)
