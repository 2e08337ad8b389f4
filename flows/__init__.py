"""Prefect flows: what runs when, with which retries, limits, schedules and artifacts. The work is in ``pancrafter``."""
