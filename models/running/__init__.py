"""A call from its arguments to its tokens: laid out on the host, run in compiled programs."""
