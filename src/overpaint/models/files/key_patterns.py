"""Patterns of tensor keys that identify the kind of a weight file."""

LORA_KEYS = r"lora_|\.lora\.|\.(hada|lokr)_|\.dora_scale"
"""A pattern that is in some key of every LoRA."""
