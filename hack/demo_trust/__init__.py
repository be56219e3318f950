"""The demonstration of trust: strangers' devices of which some lie, and a job without a wrong row."""
