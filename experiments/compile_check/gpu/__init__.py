"""`resprune gpu-check`: GPUs that are described, and the launches of what is compiled for them."""
