"""Lower bounds on epsilon from canaries' scores, tests of a claim, and certificates of both by simulation."""
