"""Patterns of tensor keys that identify the kind of a weight file."""

LORA_KEYS = (
    r"lora_[A-Za-z0-9]|[._]lora\.|_lora\.|\.(hada|lokr)_|\.dora_scale|\.b?oft_|\.ia3_|vera_lambda"
    r"|\.[wb]_norm$|\.diff(_b)?$|\.on_input$|\.[ab][12]\.weight$|^bundle_emb\."
)
"""Matches at least one key of every LoRA."""
