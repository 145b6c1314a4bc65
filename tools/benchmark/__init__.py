"""What HIVE costs, measured: against self-attention and against PyTorch."""
