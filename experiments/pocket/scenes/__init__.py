"""Seeded drawings with questions and labels."""
