"""Attacks against finished checkpoints and intervals for what they found."""
