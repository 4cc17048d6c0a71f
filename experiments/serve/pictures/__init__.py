"""Where a request's pictures come from: data URLs, a folder, hosts that were allowed by name."""
