"""What a report says of the findings, as facts and as one short prompt."""
