"""What the grid tells of itself: log lines, one event each, fields instead of prose."""
