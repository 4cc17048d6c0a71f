"""Reading prompts: chat markup, option letters, and the other parts that are no question."""
