"""What answering many clients together gives, over one after the other."""
