"""The pocket model as a checkpoint: its sizes, its tokenizer, its files."""
