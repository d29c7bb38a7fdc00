"""How fast and how lean Overpaint is, beside diffusers, on this machine: `python -m benchmarks`."""
