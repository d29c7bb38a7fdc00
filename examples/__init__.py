"""Sketches, and the demo that repaints them."""
