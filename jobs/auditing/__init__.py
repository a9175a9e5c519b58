"""Counterfactual audits in bulk: images made once, scored by every classifier, judged, and counted."""
