"""Hugging Face files to (sharded) parameters and back."""
