"""`resprune bench generate`: what an answer costs, full and pruned, beside transformers."""
