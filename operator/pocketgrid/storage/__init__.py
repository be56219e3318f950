"""Data sets in, results out, and the commit log that makes a result done; the model store."""
