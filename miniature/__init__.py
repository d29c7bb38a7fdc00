"""How the built-in miniature of SDXL is made and measured: `python -m miniature make --out DIR`."""
