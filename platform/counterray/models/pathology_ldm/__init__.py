"""Text-guided diffusion of the pathology channel of `gsvae`: stage 2 of Nie et al."""
