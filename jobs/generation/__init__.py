"""Synthetic images in bulk: what is asked for, cut into chunks, made on Ray, each chunk published once."""
