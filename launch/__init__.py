"""From a config to a running job, on machines that are elsewhere: ``python -m launch WHERE ...``."""
