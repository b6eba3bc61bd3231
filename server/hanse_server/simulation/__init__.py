"""Grids that drive the same ClientApp without a network."""
