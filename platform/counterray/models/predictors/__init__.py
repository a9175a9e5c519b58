"""Predictors, the frozen judges of losses and metrics; a file each, and `load_judge` to reopen one."""

from counterray.models.predictors.judges import load_judge

__all__ = ["load_judge"]
