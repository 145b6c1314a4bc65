"""Components with an image encoder and a decoder: Hive and LLaVA-style models."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import tokenizer_file
from hive_jax.export.component_base import Component, softcap_notes
from hive_jax.export.example_inputs import (
    NEW_TOKENS,
    NUM_IMAGES,
    NUM_TOKENS,
    TEXT,
    example_images,
    example_tokens,
    images_of,
)
from hive_jax.export.tokenizer import IMAGE_TOKEN, ExportedTokenizer, export_tokenizer
from hive_jax.models.config import HiveConfig, SiglipConfig
from hive_jax.models.execution import SCANNED
from hive_jax.models.hive import Hive
from hive_jax.weights import hf_models, sources

_TORCH = Path(__file__).parent / "torch"
# Tables with a row for each token.
_TABLES = ("llm/embedder/input_embedding", "llm/lm_head/output_embedding")


class ImageTextComponent(Component):
    """Encoder, fusion and decoder together: text that is generated from an image."""

    branches = ("img", "llm", "fusion")
    pipeline_tag = "image-text-to-text"
    auto_class = "AutoModelForImageTextToText"
    num_image_tokens = 0  # in the token ids that transformers takes
    open = staticmethod(sources.open_hive)

    @classmethod
    def is_in(cls, run: RunConfig, branches: set[str]) -> bool:
        """Returns whether a run has this component: branches and a matching fusion.

        Args:
          run: config of the run.
          branches: top-level names of its parameter tree.
        """
        kind = run.model.fusion_kind.export_kind
        # Both components have the same branches; the fusion tells them apart.
        return kind == cls.name and super().is_in(run, branches)

    @classmethod
    def config_of(cls, run: RunConfig) -> HiveConfig:
        # The files must not depend on how defaults are computed.
        return run.model.with_defaults()

    @property
    def encoder_config(self) -> SiglipConfig:
        return self.config.encoder

    def npz_configs(self) -> dict[str, dict]:
        return {
            "img": dataclasses.asdict(self.config.encoder),
            "llm": dataclasses.asdict(self.config.decoder),
            "fusion": {
                "fusion": self.config.fusion,
                "connections": self.config.connections,
                "projector": self.config.projector,
                "image_kv": self.config.image_kv,
                "image_rope": self.config.image_rope,
            },
        }

    def example_inputs(self) -> dict[str, np.ndarray]:
        tokens = example_tokens((NUM_IMAGES, NUM_TOKENS), self.num_text_tokens)
        # The shortest prompt: what follows is decided by the image.
        prompt = np.full((NUM_IMAGES, 1), self.tokenizer.bos_id or 0)
        return example_images(self.config.encoder) | {
            "input_ids": self.after_image(tokens),
            "prompt_ids": self.after_image(prompt),
        }

    @property
    def num_text_tokens(self) -> int:
        """Exclusive upper bound of the token ids of text."""
        return self.config.decoder.vocab_size

    def after_image(self, tokens: np.ndarray) -> np.ndarray:
        """Prepends P image tokens: int[B, T] -> int[B, P + T]. None by default."""
        return tokens

    def reference_outputs(self, inputs, generated) -> dict[str, jax.Array]:
        """Returns the logits of the text, and the greedy tokens after the prompt.

        Args:
          inputs: as from `example_inputs`; image tokens before the text are dropped,
            for hive_jax inserts the image by itself.
          generated: int[B, NEW_TOKENS], the tokens that transformers generated.

        Returns:
          "logits", float32[B, T, vocab_size], and "greedy", int[B, NEW_TOKENS], the
          argmax at each position of `generated`.
        """
        model = Hive(self.computed_config(), execution=SCANNED)
        params, images = self.params, images_of(inputs)

        @jax.jit
        def logits(params, images, tokens):
            image_mask = jnp.ones(tokens.shape, bool)
            hidden = model.apply({"params": params}, images, tokens, image_mask)
            return model.apply({"params": params}, hidden, method="logits")

        text = inputs["input_ids"][:, self.num_image_tokens :]
        prompt = inputs["prompt_ids"][:, self.num_image_tokens :]
        # One forward pass over prompt and answer, in place of decoding step by step.
        sequence = np.concatenate([prompt, generated], axis=1)
        likeliest = logits(params, images, sequence).argmax(-1)
        return {
            "logits": logits(params, images, text),
            # The logits at a position predict the next token.
            "greedy": likeliest[:, -NEW_TOKENS - 1 : -1],
        }

    def computed_config(self) -> HiveConfig:
        """Returns the config of the model that the transformers class computes."""
        return self.config

    def torch_outputs(self) -> dict[str, list]:
        return {"logits": ["logits"]}


class HiveComponent(ImageTextComponent):
    """The whole model of a fusion that attends to the image's keys and values, as
    HiveForConditionalGeneration of torch/."""

    name = "hive"
    description = "The vision-language model with cross-attention"
    remote_code = True
    loading_snippet = """\
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

# The folder's own modeling_hive.py: torch, and a stock SigLIP and decoder.
model = AutoModelForImageTextToText.from_pretrained('.', trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained('.', trust_remote_code=True)
pixels = AutoImageProcessor.from_pretrained('.')(images=image, return_tensors="pt")
out = model.generate(**tokenizer("", return_tensors="pt"), **pixels, max_new_tokens=64)
tokenizer.decode(out[0], skip_special_tokens=True)"""

    def layout(self) -> hf_models.Layout:
        return hf_models.hive(self.config)

    def extra_files(self) -> dict[str, dict | str]:
        # transformers loads these from the folder, with trust_remote_code.
        names = sorted(path.name for path in _TORCH.glob("*_hive.py"))
        return {name: (_TORCH / name).read_text("utf-8") for name in names}


@dataclasses.dataclass(frozen=True)
class VlmComponent(ImageTextComponent):
    """The whole model with image tokens, as LlavaForConditionalGeneration.

    Attributes:
      image_token_id: token that stands for one patch; None before `for_transformers`.
      rows_added: to the embedding table, for that token.
    """

    image_token_id: int | None = None
    rows_added: int = 0

    name = "vlm"
    description = "A LLaVA-style vision-language model"
    processor_class = "LlavaProcessor"
    loading_snippet = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained('.')
model = AutoModelForImageTextToText.from_pretrained('.')
messages = [{"role": "user", "content": [{"type": "image"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=64)
processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)"""
    mismatch_hint = (
        "\n(LLaVA with Gemma 1 or 2 computes different logits in transformers 4 than "
        "in 5; `target` chooses the version to write for.)"
    )

    @classmethod
    def from_folder(cls, folder: Path, report: Mapping) -> Self:
        """Loads the component from an exported folder, with its image token.

        Args:
          folder: as `export` writes it.
          report: content of its hive_export.json.

        Raises:
          MissingInputError, CheckpointError: files are missing, damaged or changed.
        """
        component = super().from_folder(folder, report)
        image_token_id = report.get("image_token", {}).get("id")
        return dataclasses.replace(component, image_token_id=image_token_id)

    def layout(self) -> hf_models.Layout:
        return hf_models.vlm(self.config, self.image_token_id)

    def exported_tokenizer(self) -> ExportedTokenizer:
        file = tokenizer_file(self.tokenizer_source)
        return export_tokenizer(file, image_token=True, chat=self.chat)

    def for_transformers(self) -> Self:
        """Adds an embedding of the image token, in a new row where the table has none,
        and to an untied head.

        New rows are copies of the first one, so that their logits never exceed it.
        """
        token = self.exported_tokenizer().image_token_id
        decoder = self.config.decoder
        # A padded table has a row for the token already.
        rows_added = max(0, token + 1 - decoder.vocab_size)
        tables = {
            name: np.concatenate([table, np.repeat(table[:1], rows_added, axis=0)])
            for name, table in self.arrays.items()
            if name in _TABLES
        }
        vocab_size = decoder.vocab_size + rows_added
        decoder = dataclasses.replace(decoder, vocab_size=vocab_size)
        return dataclasses.replace(
            self,
            config=dataclasses.replace(self.config, decoder=decoder),
            arrays={**self.arrays, **tables},
            image_token_id=token,
            rows_added=rows_added,
        )

    def extra_files(self) -> dict[str, dict | str]:
        processor = {
            "processor_class": self.processor_class,
            "patch_size": self.config.encoder.patch_size,
            # All patches: SigLIP has no class token to drop.
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
            "image_token": IMAGE_TOKEN,
        }
        return {"processor_config.json": processor}

    def report_fields(self) -> dict:
        token = {"content": IMAGE_TOKEN, "id": self.image_token_id}
        return {"image_token": {**token, "rows_added": self.rows_added}}

    def arrays_for_files(self) -> Mapping[str, np.ndarray]:
        if self.target == "v5":
            return self.arrays
        # Version 4 scales image tokens like text by sqrt(width): see `card_notes`.
        return hf_models.fold_embedding_scale(self.arrays, self.config)

    def arrays_from_files(self, arrays) -> Mapping[str, np.ndarray]:
        if self.target == "v5":
            return arrays
        return hf_models.fold_embedding_scale(arrays, self.config, back=True)

    def card_notes(self, run: RunConfig) -> list[str]:
        decoder = self.config.decoder
        notes = [*super().card_notes(run), *softcap_notes(decoder)]
        if decoder.final_softcap:
            notes.append(
                "LLaVA's class leaves out the decoder's final soft-cap: the likeliest "
                "token is the same, probabilities are sharper."
            )
        notes.append(
            f"The image token is `{IMAGE_TOKEN}`, id {self.image_token_id}; "
            f"{self.rows_added} rows were added to the embedding table for it."
        )
        if hf_models.scales_image_tokens(decoder):
            notes.append(
                f"Written for transformers {self.target[1:]}: version 4 multiplies the "
                "image's tokens by the square root of the width where the decoder is a "
                "Gemma 1 or 2, version 5 does not."
            )
        return notes

    @property
    def num_image_tokens(self) -> int:
        return self.config.encoder.num_patches

    @property
    def num_text_tokens(self) -> int:
        # Random text must not contain the image token.
        return min(self.config.decoder.vocab_size, self.image_token_id)

    def after_image(self, tokens: np.ndarray) -> np.ndarray:
        shape = len(tokens), self.num_image_tokens
        return np.concatenate([np.full(shape, self.image_token_id), tokens], axis=1)

    def computed_config(self) -> HiveConfig:
        # LlavaForConditionalGeneration has no final soft-cap; see `left_out`.
        decoder = dataclasses.replace(self.config.decoder, final_softcap=0.0)
        return dataclasses.replace(self.config, decoder=decoder)

    def torch_options(self) -> dict:
        return {"logits_to_keep": NUM_TOKENS}  # of the text alone

    def reference_processor_outputs(self, inputs) -> dict[str, np.ndarray]:
        outputs = super().reference_processor_outputs(inputs)
        del outputs["tokenizer"]  # the chat template replaces it
        if self.chat:
            ids = self.after_image(outputs.pop("conversation")[None])[0]
        else:
            text, _ = self.tokenizer.encode(TEXT + "\n")
            ids = np.concatenate([inputs["prompt_ids"][0], text])
        return outputs | {"chat template": ids, "chat template, one string": ids}

    def left_out(self) -> list[str]:
        softcap = self.config.decoder.final_softcap
        return [f"final_softcap {softcap:g}"] if softcap else []

    def needs_transformers_4(self) -> bool:
        return self.target == "v4"
