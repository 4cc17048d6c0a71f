"""Image files and the processors' files, before any family reads them."""
