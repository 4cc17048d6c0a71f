"""`resprune answer`: questions about images, one or a file of them."""
