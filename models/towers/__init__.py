"""Vision towers that families share."""
