"""Monitoring: is what was proven about a release still true of the traffic that it meets?"""
