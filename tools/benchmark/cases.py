"""What is measured: model sizes by name, and a RunConfig for each fusion and stage."""

import dataclasses

from hive_jax.config import DataConfig, MeshConfig, OptimizerConfig, Rule, RunConfig
from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
from hive_jax.models.presets import decoder_config, siglip_config

FUSIONS = ("hive", "joint", "cascaded", "self_attention")
STAGES = (1, 2, 3)
# By stage, as in configs/stage1.py to stage3.py.
IMAGE_KV = {1: "shared", 2: "own", 3: "own"}


@dataclasses.dataclass(frozen=True)
class Size:
    """Two towers, the length of the text and the images of a step."""

    encoder: SiglipConfig
    decoder: DecoderConfig
    num_tokens: int
    batch_size: int


# The key of the size that the published figures are counted for.
FULL_SIZE = "siglip_l16_384+gemma3_1b"
SIZES = {
    # Runs within seconds: for tests.
    "micro": Size(
        SiglipConfig(32, 4, 64, 2, patch_size=8, image_size=32),
        DecoderConfig(128, 32, 4, 64, 2, 1, 16, qk_norm=True, post_norms=True),
        num_tokens=8,
        batch_size=4,
    ),
    # Large enough for a CPU's matrix products to be what counts.
    "tiny": Size(
        SiglipConfig(256, 6, 1024, 4, patch_size=16, image_size=192),
        DecoderConfig(8192, 288, 6, 1728, 4, 1, 64, qk_norm=True, post_norms=True),
        num_tokens=20,
        batch_size=8,
    ),
    FULL_SIZE: Size(siglip_config("L", 16, 384), decoder_config("gemma3_1b"), 77, 128),
    "siglip_l16_384+gemma3_270m": Size(
        siglip_config("L", 16, 384), decoder_config("gemma3_270m"), 77, 128
    ),
    "siglip_so400m14_224+gemma_2b": Size(
        siglip_config("So400m", 14, 224), decoder_config("gemma_2b"), 77, 64
    ),
}


def case(
    size: Size, fusion: str, rules: tuple, dtype: str = "auto", image_kv: str = "shared"
) -> RunConfig:
    """Returns the config of a run on one device.

    Replace fields of the result for variants: execution, batch_size.

    Args:
      size: towers, text length and batch size.
      fusion: name of the fusion.
      rules: optimizer rules of a stage, from its config file.
      dtype: of the computation; "auto" for that of the device.
      image_kv: of "joint"; see HiveConfig.
    """
    return RunConfig(
        name=f"benchmark_{fusion}",
        batch_size=size.batch_size,
        dtype=dtype,
        model=HiveConfig(size.encoder, size.decoder, fusion, image_kv=image_kv),
        data=DataConfig(num_tokens=size.num_tokens),
        # The value has no effect on the time of a step.
        optimizer=OptimizerConfig(peak_lr=1e-4),
        # One device, on machines with more, too.
        mesh=MeshConfig(1, 1, 1),
        rules=tuple(Rule(*rule) for rule in rules),
    )
