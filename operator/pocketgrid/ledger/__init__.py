"""`pocketgrid ledger`: shows, checks and exports what the commit logs of jobs say of pay."""
