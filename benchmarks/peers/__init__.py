"""One script for each library that hpcrl is compared with; each runs under the Python that has the library."""
