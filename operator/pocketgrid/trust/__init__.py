"""Should this be believed? Pure: evidence in, verdicts out."""
