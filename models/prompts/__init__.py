"""Questions to token ids: chat templates, budgets, static sizes."""
