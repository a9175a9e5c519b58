"""Audits of diagnostic models: associational ones, the published test, and counterfactual effects."""
