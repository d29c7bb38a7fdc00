"""Work on pictures larger than the UNet or the VAE can take at once, window by window."""
