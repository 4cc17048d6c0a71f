"""`resprune sweep`: a grid of configurations on a data set, each distinct answer computed once."""
