"""What a model does, to look at: gradients, attention, features, curves."""

from hive_jax.analysis.attention import Words, attention_maps
from hive_jax.analysis.curves import read_curves
from hive_jax.analysis.features import compare_features, features_of, principal_colours
from hive_jax.analysis.gradients import feature_gradients, gradient_flow, same_towers
from hive_jax.analysis.shown import Shown, shown_file, shown_scenes

__all__ = [
    "Shown",
    "Words",
    "attention_maps",
    "compare_features",
    "feature_gradients",
    "features_of",
    "gradient_flow",
    "principal_colours",
    "read_curves",
    "same_towers",
    "shown_file",
    "shown_scenes",
]
