"""Releases: what a server loads, and why it may trust it."""
