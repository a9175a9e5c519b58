"""Parts of the audit's report: what it is made of, and its sections."""
