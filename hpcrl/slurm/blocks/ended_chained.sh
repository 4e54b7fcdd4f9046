[ "$status" -eq 0 ] || say "the ranks ended with status $status"
say "the next job of the chain goes on; by hand: $again"
exit "$status"
