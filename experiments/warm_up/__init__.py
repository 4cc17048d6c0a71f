"""`resprune warm-up`: the programs of answers to come, compiled ahead."""
