"""Tabular worlds with known truth: equations, a pool of classifiers, exact and learned counterfactuals."""
