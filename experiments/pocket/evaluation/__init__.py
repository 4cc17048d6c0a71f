"""The pocket model's accuracy, full and pruned, with intervals."""
