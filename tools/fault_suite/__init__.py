"""Faults that a run meets, caused on purpose and counted; see tools/faults.py."""
