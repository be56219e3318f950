"""Custom resources: types, checks, and their translation into the grid's own words."""
