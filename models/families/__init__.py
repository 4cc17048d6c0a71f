"""The model families: a folder and a row in the registry each."""
