"""Base class of the components that a run can be exported as."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_file
from hive_jax.data.transforms import drops_alpha
from hive_jax.export.example_inputs import TEXT, example_conversation
from hive_jax.export.known_deviation import KnownDeviation
from hive_jax.export.processor_images import expected_pixels, known_deviations
from hive_jax.export.tokenizer import ExportedTokenizer, export_tokenizer
from hive_jax.models.config import DecoderConfig, SiglipConfig
from hive_jax.weights import hf_image_processor, hf_models
from hive_jax.weights.sources import WeightSource


@dataclasses.dataclass(frozen=True)
class Component(abc.ABC):
    """A component of a model: its parameters, and all that its export needs.

    Attributes:
      config: SiglipConfig, (SiglipConfig, TextTowerConfig), DecoderConfig or HiveConfig.
      arrays: parameters by name, those of `param_shapes(config)`.
      preprocessing: image preprocessing of the training.
      tokenizer_source: tokenizer of the training, as `load_tokenizer` takes it; not
        read for a component without text.
      target: version of transformers to write for, "v4" or "v5".
      chat: whether it was trained on conversations by the tokenizer's chat template.

    Class attributes:
      name: value of `component` in `export`, and in hive_export.json.
      branches: top-level names of the parameter tree that belong to it.
      description, pipeline_tag, loading_snippet: for the model card; the snippet
        loads the folder ".".
      auto_class: class of transformers that loads the folder.
      remote_code: whether the folder brings its own modeling code.
      processor_class: of a joint processor for images and text, if there is one.
      npz_prefix: of array names in an .npz, where `arrays` has no branch names.
      texts: output name -> text that the exported tokenizer is compared on.
      mismatch_hint: appended to the error of a failed verification.
      open: opens an exported folder (path -> config and tensors).
    """

    config: object
    arrays: Mapping[str, np.ndarray]
    preprocessing: str
    tokenizer_source: str
    target: str = "v5"
    chat: bool = False

    name: ClassVar[str]
    branches: ClassVar[tuple[str, ...]]
    description: ClassVar[str]
    pipeline_tag: ClassVar[str]
    loading_snippet: ClassVar[str]
    auto_class: ClassVar[str]
    remote_code: ClassVar[bool] = False
    processor_class: ClassVar[str] = ""
    npz_prefix: ClassVar[str] = ""
    texts: ClassVar[Mapping[str, str]] = {"tokenizer": TEXT}
    mismatch_hint: ClassVar[str] = ""
    open: ClassVar[Callable[[str], WeightSource]]

    # What it is made from.

    @classmethod
    def is_in(cls, run: RunConfig, branches: set[str]) -> bool:
        """Returns whether a run has this component.

        Args:
          run: config of the run.
          branches: top-level names of its parameter tree.
        """
        return set(cls.branches) <= branches

    @classmethod
    def from_run(cls, run: RunConfig, params: Mapping, target: str = "v5") -> Self:
        """Creates the component from a run.

        Args:
          run: config of the run.
          params: its whole parameter tree.
          target: version of transformers to write for, "v4" or "v5".
        """
        params = {branch: params[branch] for branch in cls.branches}
        # Without the branch name: a tower alone has its own tree as the root.
        if len(cls.branches) == 1:
            (params,) = params.values()
        arrays = flatten_dict(params, sep="/")
        return cls(
            cls.config_of(run),
            {name: np.asarray(array) for name, array in arrays.items()},
            run.data.preprocessing,
            run.data.tokenizer,
            target,
        )

    @classmethod
    def from_folder(cls, folder: Path, report: Mapping) -> Self:
        """Loads the component from an exported folder.

        Args:
          folder: as `export` writes it.
          report: content of its hive_export.json.

        Raises:
          MissingInputError, CheckpointError: files are missing, damaged or changed.
        """
        source = cls.open(str(folder))
        component = cls(
            source.config,
            dict(source.leaves()),
            source.preprocessing,
            str(folder),
            report.get("target", "v5"),
            report.get("chat_template", False),
        )
        # Back to the scaling of hive_jax, in which outputs are compared.
        scaled = component.arrays_from_files(component.arrays)
        return dataclasses.replace(component, arrays=scaled)

    @classmethod
    @abc.abstractmethod
    def config_of(cls, run: RunConfig) -> object:
        """Returns the value of `config` for a run."""

    @classmethod
    def has_text(cls) -> bool:
        """Whether the component has a text tower or a decoder."""
        return not {"txt", "llm"}.isdisjoint(cls.branches)

    @classmethod
    def generates(cls) -> bool:
        """Whether the component generates text."""
        return "llm" in cls.branches

    @property
    @abc.abstractmethod
    def encoder_config(self) -> SiglipConfig | None:
        """Config of the image encoder; None for a component without one."""

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Tokenizer of the training; None for a component without text.

        Raises:
          MissingInputError: its file is not there.
        """
        return load_tokenizer(self.tokenizer_source) if self.has_text() else None

    @property
    def params(self) -> dict:
        """Nested parameters, as the module's `apply` takes them."""
        return unflatten_dict(dict(self.arrays), sep="/")

    # What is written.

    @abc.abstractmethod
    def layout(self) -> hf_models.Layout:
        """config.json and the tensor table of the transformers class."""

    @abc.abstractmethod
    def npz_configs(self) -> dict[str, dict]:
        """Config of each branch, stored in the .npz beside the arrays."""

    def exported_tokenizer(self) -> ExportedTokenizer | None:
        """Tokenizer to write; None for a component without text.

        Raises:
          MissingInputError: its file is not there.
          CheckpointError: transformers cannot read a file of this format.
        """
        if not self.has_text():
            return None
        return export_tokenizer(tokenizer_file(self.tokenizer_source), chat=self.chat)

    def for_transformers(self) -> Self:
        """Returns the component with what transformers needs, as an image token."""
        return self

    def extra_files(self) -> dict[str, dict | str]:
        """Files that only this component has: name -> JSON object or text."""
        return {}

    def report_fields(self) -> dict:
        """Entries of hive_export.json that only this component has."""
        return {}

    def arrays_for_files(self) -> Mapping[str, np.ndarray]:
        """The parameters with the scaling that `target` expects of the files."""
        return self.arrays

    def arrays_from_files(
        self, arrays: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Inverse of `arrays_for_files`."""
        return arrays

    def rounded(self, dtype: np.dtype) -> Self:
        """The component with the parameter values that files of `dtype` hold."""
        arrays = {
            # There and back: the values are rounded, the dtype is float32 again.
            name: array.astype(dtype, copy=False).astype(np.float32, copy=False)
            for name, array in self.arrays_for_files().items()
        }
        return dataclasses.replace(self, arrays=self.arrays_from_files(arrays))

    def card_notes(self, run: RunConfig) -> list[str]:
        """Sentences of the model card about the use of this component.

        Args:
          run: config of the run that it comes from.
        """
        if self.encoder_config is None:
            return []
        size = self.encoder_config.image_size
        note = (
            f"Images are {size} x {size} pixels, prepared as `{self.preprocessing}` "
            "does: `preprocessor_config.json` says how."
        )
        nearest = hf_image_processor.nearest_preprocessing(self.preprocessing)
        # "bv_bilinear", which transformers cannot express.
        if nearest != self.preprocessing:
            note = (
                f"Images are {size} x {size} pixels. In training `tf.image.resize` made "
                "them, bilinear without antialiasing and cut to whole numbers, as "
                "big_vision does. No image processor of transformers does that: "
                "`preprocessor_config.json` names its nearest, bilinear with "
                "antialiasing, which is softer where an image shrinks."
            )
        if drops_alpha(self.preprocessing):
            note += (
                " Transparent images: training dropped their alpha, and transformers "
                "since 5.22 composites them on white."
            )
        notes = [note]
        if run.objective == "caption" and self.encoder_config.map_head:
            notes.append(
                "The pooling head (`pooler_output`) is the one that the encoder came "
                "with: HIVE trains the layers below it, and not the head. Use the "
                "tokens."
            )
        return notes

    # What it computes, for the comparison with transformers.

    @abc.abstractmethod
    def example_inputs(self) -> dict[str, np.ndarray]:
        """Fixed inputs: built-in scenes and random tokens, the same every time.

        Returns:
          As the component needs them: the image files of `image_files`,
          pixel_values float32[B, 3, size, size] in [-1, 1], input_ids int64[B, T],
          and prompt_ids int64[B, T'], after which NEW_TOKENS tokens are generated.
        """

    @abc.abstractmethod
    def reference_outputs(
        self, inputs: Mapping[str, np.ndarray], generated: np.ndarray | None
    ) -> dict[str, jax.Array]:
        """Computes the outputs of hive_jax, float32, by the names of `torch_outputs`.

        Args:
          inputs: as from `example_inputs`.
          generated: int[B, NEW_TOKENS], generated by transformers after the prompt;
            None for a component that is compared in one forward pass. The output
            "greedy" is the argmax at each of these positions: where it equals
            `generated`, both decode the same tokens, and one forward pass proves it.
        """

    @abc.abstractmethod
    def torch_outputs(self) -> dict[str, list]:
        """Returns name -> keys of the output in the model output of transformers."""

    def torch_options(self) -> dict:
        """Keyword arguments of the transformers model besides the inputs."""
        return {}

    def tokenizer_options(self) -> dict:
        """Keyword arguments of the transformers tokenizer besides the text."""
        return {}

    def reference_processor_outputs(
        self, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Preprocesses image files and `texts` as training does.

        Args:
          inputs: as from `example_inputs`.

        Returns:
          The pixels of `expected_pixels`, and the ids of each of `texts`, int[T], for
          components with an image encoder and with text.
        """
        outputs = {}
        if self.encoder_config is not None:
            # What the folder's image processor computes, not what the training did.
            nearest = hf_image_processor.nearest_preprocessing(self.preprocessing)
            size = self.encoder_config.image_size
            outputs |= expected_pixels(inputs, size, nearest)
        if self.has_text():
            bos_id = self.tokenizer.bos_id
            begin = [] if self.chat or bos_id is None else [bos_id]
            for name, text in self.texts.items():
                outputs[name] = np.array(begin + self.tokenizer.encode(text)[0])
        if self.chat:
            outputs["conversation"] = example_conversation(self.tokenizer)
        return outputs

    def known_deviations(
        self, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, KnownDeviation]:
        """Returns what transformers is known to compute otherwise, by output.

        Args:
          inputs: as from `example_inputs`.
        """
        if self.encoder_config is None:
            return {}
        preprocessing = hf_image_processor.nearest_preprocessing(self.preprocessing)
        return known_deviations(inputs, self.encoder_config.image_size, preprocessing)

    def left_out(self) -> list[str]:
        """Lists the operations of the model that the transformers class omits."""
        return []

    def needs_transformers_4(self) -> bool:
        """Returns whether transformers 5 computes other outputs from the files."""
        return False


def softcap_notes(decoder: DecoderConfig) -> list[str]:
    """Returns the model card's note about attention soft-capping, or an empty list."""
    if not decoder.attention_softcap:
        return []
    note = (
        "The decoder's attention has a soft-cap, which only "
        "`attn_implementation='eager'` computes: give it to `from_pretrained`."
    )
    return [note]
