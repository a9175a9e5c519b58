"""CIT-LR (Ma et al.): six tabular worlds, a dialled pool, the published tests, and the effects themselves."""
