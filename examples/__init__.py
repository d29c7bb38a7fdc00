"""Sketches, and the programs that draw and repaint them."""
