"""Causal disentanglement (Nie et al.): ablation, counterfactuals, rare findings, downstream use."""
