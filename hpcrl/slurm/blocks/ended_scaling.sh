if [ -z "$warned$lost" ]; then
    say "the benchmark ended with status $status; to measure what is missing: $again"
    exit "$status"
fi
