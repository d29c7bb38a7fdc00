"""Our own network parts: blocks, attention with its context, packed weights."""
