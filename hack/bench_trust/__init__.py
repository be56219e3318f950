"""The real trust code against simulated devices that lie, and two of BOINC's ways beside it."""
