"""Who should do what, and how much of it. Pure: a snapshot in, decisions with their reasons out."""
