"""Tracing: what a request leaves behind, durably."""
