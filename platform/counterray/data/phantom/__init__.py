"""Chest radiographs drawn from a known structural causal model."""
