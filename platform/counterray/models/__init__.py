"""A folder per method."""
