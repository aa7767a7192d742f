"""Conformance: is an engine, with this model, really private? Asked on made-up rows, from outside."""
