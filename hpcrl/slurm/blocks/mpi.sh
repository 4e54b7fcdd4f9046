# The --mpi of srun that belongs to the MPI library which Python finds: pmix, pmi2, cray_shasta.
mpi=${HPCRL_MPI:-$(python3 -m hpcrl.cluster.srun)} || exit 2
