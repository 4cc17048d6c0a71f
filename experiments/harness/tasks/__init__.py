"""Task files of lmms-eval for the paper's nine benchmarks, and the functions that they name."""
