"""Requests over time: many at once, on one device."""
