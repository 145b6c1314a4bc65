"""The paper, small: every run that its tables need, and the tables."""
