"""Patterns of tensor keys that identify the kind of a weight file."""

LORA_KEYS = r"lora_|\.lora\.|\.(hada|lokr)_|\.dora_scale"
"""Matches at least one key of every LoRA."""
