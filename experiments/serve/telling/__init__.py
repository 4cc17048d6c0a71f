"""What clients and operators are told: refusals, replies, metrics."""
