"""Names of tensors in files that may hold several components."""

import re
from collections.abc import Iterable

# Prefixes of each component's tensor names, in the models and transformers versions that
# contain it. The first one is that of a folder of the component alone.
VISION_PREFIXES = (
    "vision_model.",
    "",
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
)
TEXT_PREFIXES = (
    "model.",
    "",
    "language_model.model.",
    "language_model.",
    "model.language_model.",
    "model.text_model.",
)
# First elements of the tensor names of other components, which may be left out.
_OTHER_COMPONENTS = (
    *("vision_model.", "text_model.", "logit_scale", "logit_bias"),
    *("vision_tower.", "language_model.", "multi_modal_projector.", "lm_head."),
    *("projectors.", "cross_attentions.", "joint_attentions.", "connector."),
    *("image_newline", "visual.", "img/", "txt/", "llm/", "fusion/", "t", "b"),
)
# First elements of the tensor names of heads on a tower: classifiers of transformers, and
# the value head of trl.
HEADS = ("classifier.", "score.", "qa_outputs.", "v_head.")
# Constants that older versions of transformers stored like weights.
_BUFFERS = ("position_ids", "rotary_emb.inv_freq")


def belongs_to_other_component(name: str, nested: str) -> bool:
    """Whether a tensor may be left out when one component of its file is read.

    Args:
      name: of the tensor.
      nested: prefix of the component's names where the file holds other components,
        else "".
    """
    # The connector of PaliGemma's image tower, or a classifier of big_vision's.
    if name.startswith(("img/head/", "head/", *HEADS)) or name.endswith(_BUFFERS):
        return True
    first = _first_element(name.removeprefix("model."))
    return not name.startswith(nested) and first in _OTHER_COMPONENTS


def find_prefix(names: Iterable[str], prefixes: tuple[str, ...], layer: str) -> str:
    """Returns the prefix with which `layer` occurs in the names, else the first one.

    Args:
      names: of tensors.
      prefixes: to try, in order.
      layer: beginning of a name behind the prefix.
    """
    return next(
        (p for p in prefixes if any(name.startswith(p + layer) for name in names)),
        prefixes[0],
    )


def _first_element(name: str) -> str:
    """Returns "a.b.c" -> "a.", "a/b" -> "a/", "a" -> "a"."""
    return re.match(r"[^./]*[./]?", name)[0]
