"""Formats of weight files: read, recognize and convert them."""
