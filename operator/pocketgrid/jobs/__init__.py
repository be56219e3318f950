"""A job's state machine: events in, effects out. Pure."""
