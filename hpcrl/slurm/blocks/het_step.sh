# One step over both components, one MPI world: ranks of the first come first. hpcrl gives every rank its cores itself.
(
    trap '' USR1 TERM
    [ -z "$warned" ] || exit 0 # too late to begin
    exec srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=none \
        --het-group=0 "${rank[@]}" : --het-group=1 "${rank[@]}"
) &
step=$!
