"""What the first answer of a fresh process takes, cold and with the persistent cache."""
