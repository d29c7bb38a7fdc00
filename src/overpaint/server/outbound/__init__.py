"""Outgoing connections: address rules, the HTTP client, fetched pictures."""
