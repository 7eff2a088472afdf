"""Launching a config as a job on machines that are elsewhere: ``python -m launch WHERE ...``."""
