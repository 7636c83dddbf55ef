"""The parameter space: pure functions from declared values to rows and their fingerprints."""
