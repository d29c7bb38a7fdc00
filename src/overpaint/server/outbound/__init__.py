"""Outgoing connections of the server: pictures that requests name."""
