"""Components that a run can be exported as, one class each.

To add one, write its class here and list it in COMPONENTS: export, verification, model
card and command only use the methods of `Component`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.config import RunConfig
from hive_jax.data.text_preprocessing import TextPreprocessing, own_preprocessing
from hive_jax.export.component_base import Component, softcap_notes
from hive_jax.export.example_inputs import (
    NUM_IMAGES,
    NUM_TOKENS,
    TEXT,
    example_images,
    example_tokens,
    images_of,
)
from hive_jax.export.image_text_components import HiveComponent, VlmComponent
from hive_jax.export.known_deviation import KnownDeviation
from hive_jax.export.tokenizer import ExportedTokenizer
from hive_jax.models.config import DecoderConfig, SiglipConfig
from hive_jax.models.decoder import Decoder
from hive_jax.models.execution import SCANNED
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.weights import hf_models, sources

_EMPTY_TEXT = "tokenizer, empty text"
# Longer windows would need example texts that are slow to compute.
_LONGEST_WINDOW = 1024


class EncoderComponent(Component):
    """The image encoder, as SiglipVisionModel."""

    name = "encoder"
    branches = ("img",)
    description = "A SigLIP image encoder"
    pipeline_tag = "image-feature-extraction"
    auto_class = "AutoModel"
    loading_snippet = """\
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained('.')
model = AutoModel.from_pretrained('.')
out = model(**processor(images=image, return_tensors="pt"), output_hidden_states=True)
out.last_hidden_state"""
    open = staticmethod(sources.open_encoder)

    @classmethod
    def config_of(cls, run: RunConfig) -> SiglipConfig:
        return run.model.encoder

    @property
    def encoder_config(self) -> SiglipConfig:
        return self.config

    def layout(self) -> hf_models.Layout:
        return hf_models.encoder(self.config)

    def npz_configs(self) -> dict[str, dict]:
        return {"img": dataclasses.asdict(self.config)}

    def example_inputs(self) -> dict[str, np.ndarray]:
        return example_images(self.config)

    def reference_outputs(self, inputs, generated=None) -> dict[str, jax.Array]:
        """Returns the tokens at every depth, and the pooled output of the head.

        Args:
          inputs: as from `example_inputs`; only pixel_values are read.
          generated: ignored, for an encoder generates no text.

        Returns:
          "depth 1" to "depth N" and "tokens", float32[B, P, width], and "pooled",
          float32[B, width], where the encoder has a pooling head.
        """
        # Every depth is compared, so that a mismatch shows the block where it begins.
        depths = tuple(range(1, self.config.depth + 1))
        # Scanned: one block is compiled, and a few images need no speed.
        encoder = SiglipEncoder(self.config, execution=SCANNED.encoder)
        apply = jax.jit(encoder.apply, static_argnames="depths")
        out = apply({"params": self.params}, images_of(inputs), depths=depths)
        outputs = {
            f"depth {depth}": features
            for depth, features in zip(depths, out.features, strict=True)
        }
        outputs["tokens"] = out.tokens
        if self.config.map_head:
            outputs["pooled"] = out.pooled
        return outputs

    def torch_outputs(self) -> dict[str, list]:
        depths = range(1, self.config.depth + 1)
        # hidden_states[0] are the embeddings, so that depth counts from 1 here, too.
        outputs = {f"depth {depth}": ["hidden_states", depth] for depth in depths}
        outputs["tokens"] = ["last_hidden_state"]
        if self.config.map_head:
            outputs["pooled"] = ["pooler_output"]
        return outputs

    def torch_options(self) -> dict:
        return {"output_hidden_states": True}


class TwoTowersComponent(Component):
    """Image and text encoder of a contrastive run, as SiglipModel."""

    name = "two_towers"
    branches = ("img", "txt", "t", "b")
    description = "A SigLIP image and text encoder"
    pipeline_tag = "image-feature-extraction"
    auto_class = "AutoModel"
    loading_snippet = """\
from transformers import AutoModel, AutoProcessor

processor, model = AutoProcessor.from_pretrained('.'), AutoModel.from_pretrained('.')
inputs = processor(text=texts, images=images, padding="max_length", truncation=True,
                   return_tensors="pt")
model(**inputs).logits_per_image"""
    processor_class = "SiglipProcessor"
    texts: ClassVar = {"tokenizer": TEXT, _EMPTY_TEXT: ""}
    open = staticmethod(sources.open_two_towers)

    @classmethod
    def config_of(cls, run: RunConfig) -> tuple:
        return run.model.encoder, run.text_tower

    @property
    def encoder_config(self) -> SiglipConfig:
        return self.config[0]

    def layout(self) -> hf_models.Layout:
        return hf_models.two_towers(*self.config)

    def npz_configs(self) -> dict[str, dict]:
        image, text = self.config
        return {"img": dataclasses.asdict(image), "txt": dataclasses.asdict(text)}

    def example_inputs(self) -> dict[str, np.ndarray]:
        image, text = self.config
        # Of full length: the text tower pools the last token.
        tokens = example_tokens((NUM_IMAGES, text.num_tokens), text.vocab_size)
        return example_images(image) | {"input_ids": tokens}

    def reference_outputs(self, inputs, generated=None) -> dict[str, jax.Array]:
        """Returns the embeddings of both towers and their similarity logits.

        Args:
          inputs: as from `example_inputs`; pixel_values and input_ids are read.
          generated: ignored, for the towers generate no text.

        Returns:
          "image embeddings" and "text embeddings", float32[B, width], and "logits",
          float32[B, B], images by texts: scaled and biased as in SigLIP's loss.
        """
        apply = jax.jit(TwoTowers(*self.config, execution=SCANNED).apply)
        zimg, ztxt, t, b = apply(
            {"params": self.params}, images_of(inputs), inputs["input_ids"]
        )
        # transformers returns the same sum as logits_per_image.
        logits = jnp.einsum("id,td->it", zimg, ztxt) * t[0] + b[0]
        return {"image embeddings": zimg, "text embeddings": ztxt, "logits": logits}

    def torch_outputs(self) -> dict[str, list]:
        return {
            "image embeddings": ["image_embeds"],
            "text embeddings": ["text_embeds"],
            "logits": ["logits_per_image"],
        }

    def exported_tokenizer(self) -> ExportedTokenizer:
        return super().exported_tokenizer().for_text_tower(self.config[1].num_tokens)

    def tokenizer_options(self) -> dict:
        return {"padding": "max_length", "truncation": True}

    def reference_processor_outputs(self, inputs) -> dict[str, np.ndarray]:
        """Returns the pixels as the base class, and the text tower's input of `texts`.

        Args:
          inputs: as from `example_inputs`.
        """
        outputs = super().reference_processor_outputs(inputs)
        ids = self._preprocess_texts([*self.texts.values()])
        return outputs | dict(zip(self.texts, ids, strict=True))

    def known_deviations(self, inputs) -> dict[str, KnownDeviation]:
        """Returns those of the base class, and that of the empty text.

        Args:
          inputs: as from `example_inputs`.
        """
        without_newline = dataclasses.replace(self._preprocess_texts, line=False)
        return super().known_deviations(inputs) | {
            _EMPTY_TEXT: KnownDeviation(
                without_newline([""])[0],
                "transformers does not normalize an empty text, so that it lacks its "
                "newline: pass a space instead",
            )
        }

    @property
    def _preprocess_texts(self) -> TextPreprocessing:
        return own_preprocessing(self.tokenizer_source, self.config[1].num_tokens)

    def card_notes(self, run: RunConfig) -> list[str]:
        num_tokens = self.config[1].num_tokens
        note = (
            f"Texts are stripped, end with a newline and are padded to {num_tokens} "
            'tokens: the tokenizer does this, with `padding="max_length"` and '
            "`truncation=True`."
        )
        return [*super().card_notes(run), note]


class DecoderComponent(Component):
    """The language model, as the class of its family, GemmaForCausalLM for example."""

    name = "decoder"
    branches = ("llm",)
    description = "The language model"
    pipeline_tag = "text-generation"
    auto_class = "AutoModelForCausalLM"
    loading_snippet = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('.')
model = AutoModelForCausalLM.from_pretrained('.')
model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=32)"""
    npz_prefix = "llm/"  # as in PaliGemma's files
    encoder_config = None
    open = staticmethod(sources.open_decoder)

    @classmethod
    def config_of(cls, run: RunConfig) -> DecoderConfig:
        return run.model.decoder

    def layout(self) -> hf_models.Layout:
        return hf_models.decoder(self.config)

    def npz_configs(self) -> dict[str, dict]:
        return {"llm": dataclasses.asdict(self.config)}

    def example_inputs(self) -> dict[str, np.ndarray]:
        shape = NUM_IMAGES, NUM_TOKENS
        # Longer than the window, or local and global layers would attend alike and a
        # missing window would pass the verification.
        if self.config.local_layers and self.config.window <= _LONGEST_WINDOW:
            shape = 1, max(NUM_TOKENS, self.config.window + 8)
        return {"input_ids": example_tokens(shape, self.config.vocab_size)}

    def reference_outputs(self, inputs, generated=None) -> dict[str, jax.Array]:
        """Returns the logits of one forward pass.

        Args:
          inputs: as from `example_inputs`; only input_ids are read.
          generated: ignored: the logits alone are compared.

        Returns:
          "logits", float32[B, T, vocab_size].
        """
        apply = jax.jit(Decoder(self.config, execution=SCANNED.decoder).apply)
        return {"logits": apply({"params": self.params}, inputs["input_ids"])}

    def torch_outputs(self) -> dict[str, list]:
        return {"logits": ["logits"]}

    def card_notes(self, run: RunConfig) -> list[str]:
        return softcap_notes(self.config)


COMPONENTS: dict[str, type[Component]] = {
    component.name: component
    for component in (
        EncoderComponent,
        TwoTowersComponent,
        DecoderComponent,
        VlmComponent,
        HiveComponent,
    )
}
