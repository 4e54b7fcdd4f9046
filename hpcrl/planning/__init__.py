"""How fast a layout of ranks would be: a model from measured costs, and a simulation of the same protocol."""
