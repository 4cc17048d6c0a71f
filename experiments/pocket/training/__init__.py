"""Training of the pocket model, in stages."""
