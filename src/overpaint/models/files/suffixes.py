"""Suffixes of weight files."""

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pti")
"""Suffixes of safetensors files; cog-sdxl writes embeddings as .pti."""

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
"""Suffixes of files that can run any program when they are opened."""
