"""`resprune doctor`: whether what is installed here works, and what to do where it does not."""
