"""Data sets: rows of pictures, a question and accepted answers, and how answers are scored.

`examples.open_dataset` reads one, `metrics.score` scores an answer;
docs/how_to/data.md has the format.
"""
