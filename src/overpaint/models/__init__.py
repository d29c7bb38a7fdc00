"""Files on disk become modules on a device."""
