"""A training split whose rare findings are filled up with synthetic studies that a judge has passed."""
