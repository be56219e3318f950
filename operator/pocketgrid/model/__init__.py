"""Vocabulary: what the grid talks about, as frozen data. Pure; knows no protocol, file or cluster."""
