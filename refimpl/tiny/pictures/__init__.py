"""The embedded picture model: scenes drawn by code, and the transformer that learns to draw them."""
