"""The experiments behind the tables of the paper, at a small scale."""
