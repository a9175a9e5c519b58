"""Group-supervised causal disentanglement (Nie et al.), stage 1."""
