"""The step loop, losses, optimizers and public evaluation."""
