"""All of MPI: launching, ranks, transport of unrolls and weights, reduction of gradients, failures."""
