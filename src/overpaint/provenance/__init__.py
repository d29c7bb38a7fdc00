"""Metadata, watermarks, C2PA manifests and safety checks of finished pictures."""
