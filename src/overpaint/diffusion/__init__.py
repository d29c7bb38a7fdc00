"""Diffusion: schedules, samplers, guidance, prompts, plans and the denoising loop."""
