"""Pipeline: one request from question to validated answer, step by step."""
