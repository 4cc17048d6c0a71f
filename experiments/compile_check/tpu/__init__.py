"""`resprune tpu-check`: TPUs that are described, and the compiler that libtpu brings."""
