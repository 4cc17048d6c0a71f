"""`resprune explore`: a page that shows what a method keeps at every budget, and its data."""

from resprune_jax.experiments.explore.data import Answer, Card, Page, Picture, Run, View, load

__all__ = ["Answer", "Card", "Page", "Picture", "Run", "View", "load"]
