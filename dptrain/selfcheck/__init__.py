"""The run that checks itself: what it knows of its releases without looking at a record. See docs/selfcheck.md."""
