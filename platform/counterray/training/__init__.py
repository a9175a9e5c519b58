"""Stages, and what runs them: a plain loop, or Ray Train with DeepSpeed."""
