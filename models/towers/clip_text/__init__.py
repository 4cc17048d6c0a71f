"""CLIP's text tower, and the head that brings patches into the space of its texts."""
