"""Eval set: the frozen golden cases, and the guard that keeps training away from them."""
