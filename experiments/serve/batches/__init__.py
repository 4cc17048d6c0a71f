"""The queue, the thread that owns the model, and what it does with a batch."""
