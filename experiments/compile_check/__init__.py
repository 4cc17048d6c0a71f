"""`resprune tpu-check`: programs through a real compiler, without its device."""
