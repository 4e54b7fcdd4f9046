if [ "$status" -ne 0 ] && [ -z "$lost" ]; then
    say "the ranks ended with status $status; to go on from the last checkpoint: $again"
    exit "$status"
elif [ -z "$warned$lost" ]; then
    say "somebody asked the ranks to stop; to go on: $again"
    exit 0
fi
