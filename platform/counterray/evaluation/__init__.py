"""A file per metric, and the report; nothing here knows Ray."""
