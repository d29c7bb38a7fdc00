"""Outgoing connections: address rules, the HTTP client, and downloads of pictures."""
