"""Sensors: observations of the outside world that may ask for a run.

Every decision is a pure function of facts (`deciding`); facts are read from stored things alone
(`facts`), never from a cursor, so a killed daemon or a lost cursor repeats no run.
"""
