"""Trained generators and audits online: Ray Serve applications, their API, and a page for people."""
