"""The plug-in for lmms-eval: its model `resprune`, and task files for the paper's benchmarks."""
