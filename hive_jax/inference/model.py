"""Trained models for inference: load a run, an export or released weights, and use it.

model = load("workdir/stage3")
features = model.encoder(images, depths=(2, 4)).features
answers = model.generate(images, "What colour is the star?")
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from hive_jax.config import DataConfig, MeshConfig, RunConfig
from hive_jax.data.stored_text_preprocessing import stored_preprocessing
from hive_jax.data.text_preprocessing import TextPreprocessing, own_preprocessing
from hive_jax.data.tokenizer import Tokenizer, load_tokenizer
from hive_jax.errors import CheckpointError, DataError
from hive_jax.inference.encoder import BATCH_SIZE, Encoder, Images, split_batches
from hive_jax.inference.generate import Decoding, Generator, Prompt
from hive_jax.models.config import HiveConfig
from hive_jax.models.siglip import TextTower, l2_normalize
from hive_jax.training import sharding
from hive_jax.training.objectives import compute_dtype
from hive_jax.training.stored_run import is_run, open_run
from hive_jax.weights.components import open_components
from hive_jax.weights.hf_folder import (
    TOKENIZER_FILES,
    assume_preprocessing,
    lasting_path,
    locate,
    uses_chat_template,
)
from hive_jax.weights.sources import WeightSource


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with everything needed to use it: weights, tokenizer, preprocessing.

    Attributes:
      config: config of the run; for weights in files, one with their architecture.
      params: nested dict of float32 arrays by branch: those present of img, llm and
        fusion, or img, txt, t and b of a two-tower SigLIP.
      source: path the model was loaded from.
      checkpoint: provenance: run name, fusion, step and fingerprint of the parameters;
        empty for weights in files.
      trained_here: whether this project trained the model: a run, or an .npz of one.
      chat: whether it was trained on conversations by the tokenizer's chat template.
    """

    config: RunConfig
    params: dict
    source: str
    checkpoint: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    trained_here: bool = False
    chat: bool = False

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The vision encoder. Raises CheckpointError if the model has none."""
        self._require("img", "encoder")
        return Encoder(
            self.config.model.encoder,
            self.params["img"],
            self.config.data.preprocessing or assume_preprocessing(self.source),
            self.source,
            self.config.dtype,
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises CheckpointError if none came with the weights."""
        return load_tokenizer(self._tokenizer_source())

    @functools.cached_property
    def text_preprocessing(self) -> TextPreprocessing:
        """How texts become the input of the text tower: this project's rule for towers
        that it trained, else that of the files beside the weights.

        Raises:
          CheckpointError: the model has no text tower or no tokenizer, or the files do
            not tell the rule.
        """
        self._require("txt", "text tower")
        make = own_preprocessing if self.trained_here else stored_preprocessing
        return make(self._tokenizer_source(), self.config.text_tower.num_tokens)

    def preprocess(self, images: Images) -> np.ndarray:
        """Resizes images as in training; see `Encoder.preprocess`."""
        return self.encoder.preprocess(images)

    def generate(
        self,
        images: Images | None,
        prompts: Sequence[str] | str = "",
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Generates a text after each prompt.

        Args:
          images: one image for each prompt, as for `preprocess`; None for text alone.
          prompts: texts, or one text for all images; the empty text asks for a caption.
          max_new_tokens: longest output in tokens.
          temperature: softmax temperature; 0 for greedy decoding.
          top_p: probability mass of nucleus sampling.
          seed: random seed of sampling.

        Returns:
          Generated texts, without the prompt and the end token.

        Raises:
          CheckpointError: the model has no decoder or no tokenizer.
          ConfigError: a sampling parameter is out of range.
          DataError: an image is unusable, or the numbers of images and prompts differ.
        """
        self._require("llm", "decoder")
        decoding = Decoding(max_new_tokens, temperature, top_p, seed)
        # One question for all images; without images, a single text.
        if isinstance(prompts, str):
            prompts = [prompts] * (1 if images is None else len(images))
        pixels = [None] * len(prompts) if images is None else self.preprocess(images)
        if len(pixels) != len(prompts):
            raise DataError(
                f"{len(pixels)} images and {len(prompts)} prompts; expected a prompt for "
                "each image, or one text for all"
            )
        # Numbered over all batches: samples of a prompt do not depend on its batch.
        requests = [
            Prompt(text, image, number)
            for number, (text, image) in enumerate(zip(prompts, pixels, strict=True))
        ]
        generator = self.generator(decoding)
        # Batches of one size, so that the last one needs no program of its own.
        size = min(len(requests), BATCH_SIZE)
        texts = []
        for start in range(0, len(requests), size):
            texts += generator(requests[start : start + size], size)
        return texts

    def generator(self, decoding: Decoding) -> Generator:
        """Returns the text generator for sampling settings, on all local devices.

        It is cached, so that equal settings compile once.

        Raises:
          CheckpointError: the model has no tokenizer.
          ConfigError: the model has no decoder.
        """
        if decoding not in self._generators:
            # Local devices: each process of a job generates texts of its own.
            devices, params = jax.local_devices(), self.params
            mesh = (
                sharding.make_mesh(MeshConfig(), devices) if len(devices) > 1 else None
            )
            if mesh is not None:
                # The default mesh is data-parallel: each device has all parameters.
                abstract = sharding.sharded_params(mesh, params)
                shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
                params = jax.device_put(params, shardings)
            self._generators[decoding] = Generator(
                self.config, params, self.tokenizer, decoding, mesh, self.chat
            )
        return self._generators[decoding]

    def embed_images(self, images: Images) -> np.ndarray:
        """Returns L2-normalised image embeddings float32[B, D] of a two-tower model.

        Raises:
          CheckpointError: the model has no text tower.
          DataError: an image of another type, dtype or shape.
        """
        self._require("txt", "text tower")
        return np.asarray(l2_normalize(self.encoder(images).pooled))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns L2-normalised text embeddings float32[B, D] of a two-tower model.

        Args:
          texts: one text or more, as a person would write them: `text_preprocessing`
            makes the tower's input of them.

        Raises:
          CheckpointError: as `text_preprocessing`, or the tokenizer has more tokens than
            the text tower.
          DataError: no text, or a single string.
        """
        if isinstance(texts, str) or not len(texts):
            raise DataError(
                f"texts is {texts!r:.40}; expected a sequence of texts, such as [text]"
            )
        tokens = self.text_preprocessing(texts)
        if tokens.max() >= self.config.text_tower.vocab_size:
            raise CheckpointError(
                f"{self.text_preprocessing.file} gives the token id {tokens.max()}; "
                f"expected ids below {self.config.text_tower.vocab_size}, the text "
                "tower's vocabulary: use the tokenizer of these weights"
            )
        outputs = [
            self._text_tower(self.params["txt"], batch)
            for batch in split_batches(tokens)
        ]
        return np.concatenate(outputs)[: len(tokens)]

    def save(
        self, path: str | os.PathLike, component: str = "encoder", **options
    ) -> dict:
        """Exports a component of a run for other libraries, and verifies it.

        Args:
          path: folder or .npz file that does not exist.
          component: "encoder", "two_towers", "decoder", "vlm" or "hive".
          **options: of `hive_jax.export.export.export`.

        Returns:
          The export report.

        Raises:
          CheckpointError: weights in files (use `encoder.save`), or a run without the
            component.
          OutputError: `path` exists or cannot be written.
        """
        from hive_jax.export.export import export

        if not is_run(self.source):
            raise CheckpointError(
                f"{self.source} is not a run; only the encoder of weights in files can "
                "be saved, by model.encoder.save(path)"
            )
        return export(self.source, component, os.fspath(path), **options)

    def _tokenizer_source(self) -> str:
        if not self.config.data.tokenizer:
            raise CheckpointError(
                f"{self.source} has no tokenizer; expected one of "
                f"{', '.join(TOKENIZER_FILES)} beside the weights, or the path of one as "
                "`tokenizer`"
            )
        return self.config.data.tokenizer

    @functools.cached_property
    def _text_tower(self) -> Callable:
        tower = TextTower(self.config.text_tower, compute_dtype(self.config.dtype))
        return jax.jit(
            lambda params, tokens: l2_normalize(tower.apply({"params": params}, tokens))
        )

    @functools.cached_property
    def _generators(self) -> dict[Decoding, Generator]:
        return {}

    def _require(self, branch: str, name: str) -> None:
        if branch not in self.params:
            raise CheckpointError(
                f"{self.source} has no {name}, only the parameters of "
                f"{', '.join(sorted(self.params))}"
            )


def load(path: str | os.PathLike) -> TrainedModel:
    """Loads a trained model.

    Args:
      path: workdir of a run, exported folder, Hugging Face folder or hub id, big_vision
        .npz, or "builtin:NAME".

    Raises:
      MissingInputError: `path` does not exist, or a file in it is missing.
      CheckpointError: the weights are damaged, or of an unknown family.
    """
    path = os.fspath(path)
    return load_run(path) if is_run(path) else _load_weights(path)


def load_run(workdir: str) -> TrainedModel:
    """Loads the newest checkpoint of a run.

    Raises:
      MissingInputError: there is no run in `workdir`, or it has no checkpoint.
      CheckpointError: the checkpoint is damaged.
    """
    run = open_run(workdir)
    params, meta = run.read_params()
    # Provenance for reports and exports: which weights a figure belongs to.
    checkpoint = {
        "run": run.config.name,
        "fusion": run.config.model.fusion,
        "step": meta["step"],
        "fingerprint": _joint_fingerprint(meta["fingerprints"]),
    }
    chat = bool(meta["inputs"].get("chat_template"))
    return TrainedModel(run.config, params, workdir, checkpoint, True, chat)


def _joint_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """Combines the fingerprints of all parameters of a checkpoint into one."""
    # Without the optimizer: runs with equal parameters have one fingerprint.
    lines = [f"{k} {v}" for k, v in fingerprints.items() if k.startswith("params/")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _load_weights(path: str) -> TrainedModel:
    sources = open_components(path)
    # The encoder, if there is one, which knows how images are resized.
    first = next(iter(sources.values()))
    config = RunConfig(
        name=Path(path.removeprefix("builtin:")).stem,
        data=DataConfig(
            preprocessing=first.preprocessing, tokenizer=_tokenizer_of(path, sources)
        ),
    )
    if "two_towers" in sources:
        image, text = first.config
        model = HiveConfig(encoder=image)
        config = dataclasses.replace(
            config, objective="contrastive", model=model, text_tower=text
        )
        return TrainedModel(config, first.params(), path, trained_here=first.exported)
    if isinstance(first.config, HiveConfig):
        config = dataclasses.replace(config, model=first.config)
        return TrainedModel(config, first.params(), path, chat=uses_chat_template(path))
    # Towers without a fusion between them: each can be used alone.
    architectures = {name: source.config for name, source in sources.items()}
    model = HiveConfig(**architectures, fusion="none")
    branches = {"encoder": "img", "decoder": "llm"}
    params = {branches[name]: source.params() for name, source in sources.items()}
    return TrainedModel(dataclasses.replace(config, model=model), params, path)


def _tokenizer_of(path: str, sources: Mapping[str, WeightSource]) -> str:
    """Finds the tokenizer stored with weights, or in their folder; "" for none."""
    for source in sources.values():
        if source.tokenizer:
            return source.tokenizer
    # Beside the weights, as Hugging Face folders have it.
    folder = locate(path)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return lasting_path(path, folder) if has_tokenizer else ""
