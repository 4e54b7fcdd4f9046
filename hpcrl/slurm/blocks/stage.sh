# Once a node, the packed environment goes to the node's own disk: it would be slow to import by many ranks at the
# same time from a file system that all share.
staged=${TMPDIR:-/tmp}/hpcrl-$SLURM_JOB_ID
on_every_node() {
    timeout 600 srun "${every_node[@]}" --mpi=none --kill-on-bad-exit=1 "$@"
}
on_every_node sh -ec 'rm -rf "$1"; mkdir -p "$1"; tar -xf "$2" -C "$1"' stage "$staged" "$packed_environment" || {
    say "$packed_environment could not be unpacked on every node"
    exit 2
}
PATH=$staged/bin:$PATH
