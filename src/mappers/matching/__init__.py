"""Matching the units of two base models by their weights: residual stream, heads, MLP units."""
