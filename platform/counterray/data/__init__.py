"""Studies in, batches out: sources, labels, pixels, splits, ingest and loader."""
