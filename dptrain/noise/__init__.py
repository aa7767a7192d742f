"""The noise of a step: drawn from the keystream, on an integer grid."""
