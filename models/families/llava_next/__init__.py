"""LLaVA-NeXT (v1.6)."""
