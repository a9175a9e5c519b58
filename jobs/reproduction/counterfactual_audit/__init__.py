"""Verdicts on classifiers of known truth, with counterfactuals of a generator that had to be learned."""
