"""The engine ``bookkeeping``: norms in the backward pass, one weighted sum after it."""
