"""Sources of rows, the Poisson sampler and physical batches."""
