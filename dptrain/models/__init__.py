"""Reference models, fixed feature maps and the checks that a model keeps units apart."""
