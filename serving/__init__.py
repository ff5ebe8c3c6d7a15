"""Exactly what production runs: the request path, the models behind it, releases and traces.

Belongs here: code a deployed server executes. Labelling and evaluation import it, so a label is
what production would have answered. Does not belong here: anything that needs Dagster, or that only
the factory (training, grading, rewriting) executes.
"""
