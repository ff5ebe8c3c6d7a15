"""Traces: what production was asked and answered, read from the server's sealed segments."""
