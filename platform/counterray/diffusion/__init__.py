"""Diffusion on latents: schedule, drift, network, sampling, inversion and noise optimisation."""
