"""Repeating a paper's experiment on data whose truth is known, from nothing to its tables."""
