"""The whole of PocketGrid on one machine, with things being killed: `make demo`."""
