# Once a node, the packed environment goes to the node's own disk: imports by many ranks at the same time are slow from
# a file system that all share. Only what is in it counts, not modules of the current folder or of ~/.local.
staged=$stage_dir/hpcrl-$SLURM_JOB_ID
export PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
unpack='fail() { echo "hpcrl: $(uname -n): $(echo "$1" | grep -im 1 cannot || echo "$1" | tail -n 1)"; exit 1; }
    said=$({ rm -rf "$1" && mkdir -p "${1%/*}" && mkdir -m 700 "$1" && tar -xf "$2" -C "$1"; } 2>&1) || fail "$said"
    said=$("$1/bin/python3" -c "import hpcrl" 2>&1) || fail "$said"'
trap 'patience=30 on_every_node rm -rf "$staged"' EXIT
on_every_node sh -c "$unpack" unpack "$staged" "$packed_environment" || {
    say "$packed_environment could not be unpacked to $staged on every node"
    exit 2
}
PATH=$staged/bin:$PATH

# A cancelled job starts no further step to remove the copy: there the last rank of every node to leave does it.
cat >"$run_dir/unstage" <<END
#!/bin/sh
trap '' USR1 TERM
grep -qsF "$staged/" /proc/[0-9]*/maps || exec rm -rf "$staged"
END
chmod +x "$run_dir/unstage"
export SLURM_TASK_EPILOG=$run_dir/unstage
