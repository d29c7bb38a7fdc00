"""Network parts: SDXL's blocks, attention with a context, packed weights, low-rank changes."""
