"""Analysis of trained models: gradients, attention, features, training curves."""

from hive_jax.analysis.attention import WordAttention, attention_maps
from hive_jax.analysis.examples import CaptionedImage, captioned_file, captioned_scenes
from hive_jax.analysis.features import (
    compare_features,
    extract_features,
    principal_colours,
)
from hive_jax.analysis.gradients import feature_gradients, gradient_flow, share_towers
from hive_jax.analysis.plots import read_curves

__all__ = [
    "CaptionedImage",
    "WordAttention",
    "attention_maps",
    "captioned_file",
    "captioned_scenes",
    "compare_features",
    "extract_features",
    "feature_gradients",
    "gradient_flow",
    "principal_colours",
    "read_curves",
    "share_towers",
]
