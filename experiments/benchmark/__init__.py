"""The paper's nine benchmarks without a harness: prompts, scorers, and what is handed in.

`prompts.PROMPTS` and `scoring` are plain Python, for whoever asks the questions otherwise;
docs/how_to/evaluation.md says how to run one.
"""
