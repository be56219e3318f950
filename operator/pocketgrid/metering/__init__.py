"""Who is paid what, in whole micro-units: prices, double-entry books, budgets, settlements. Pure, and integers only."""
