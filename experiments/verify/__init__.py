"""`resprune verify`: a checkpoint against the installed torch and transformers."""
