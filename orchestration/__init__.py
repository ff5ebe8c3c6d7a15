"""When and in which environment: definitions, configuration, jobs and the command line.

Belongs here: binding roles to resources, planning and launching runs. Does not belong here: what an
asset computes (`assets`), clients (`resources`), the request path (`serving`).
"""
