"""Counterfactuals of attributes: latent diffusion on a representation that a critic has cleaned."""
