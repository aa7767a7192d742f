"""Copies of a run for people to watch: MLflow, the console, metrics.jsonl."""
