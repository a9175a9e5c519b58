"""Jobs that a user or a cluster submits: parse, connect, call, save. ``python -m jobs`` lists them."""
