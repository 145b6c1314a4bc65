"""HIVE: hierarchical pre-training of vision encoders with large language models."""

__version__ = "0.1.0"
