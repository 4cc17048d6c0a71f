"""`resprune bench`: what choosing costs, and what it saves."""
