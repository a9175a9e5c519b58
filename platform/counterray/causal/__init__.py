"""Causal graphs, structural causal models and the one interface of their mechanisms."""
