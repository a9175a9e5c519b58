"""Tabular worlds with known truth: their equations, a pool of classifiers, exact and learned counterfactuals."""
