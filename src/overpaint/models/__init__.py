"""Checkpoints and add-ons: from files on disk to modules on a device."""
