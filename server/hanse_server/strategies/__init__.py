"""Aggregation strategies: streaming ones of Hanse, and the adapter for those of Flower."""
