"""Every handle on the outside world, one per file: files, models, indexes, subprocesses.

Belongs here: SDKs, credentials, paths, budgets, the roles the assets ask for filled with real
things. Does not belong here: what is computed (`assets`), how a request is answered (`serving`).
"""
