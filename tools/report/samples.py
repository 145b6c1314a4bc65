"""A section of a report: outputs of runs for the same scenes."""

from collections.abc import Mapping

from hive_jax.analysis.examples import CaptionedImage, captioned_scenes
from hive_jax.console import log
from hive_jax.data.image_io import encode_png
from hive_jax.data.tabletop import Tabletop
from hive_jax.errors import ConfigError
from hive_jax.inference.generate import Decoding, Prompt
from hive_jax.inference.model import TrainedModel
from tools.report import page

# A screen of rows.
_SAMPLES = 6


def samples(trained_models: Mapping[str, TrainedModel]) -> str:
    """Tabulates the captions and answers of runs beside the correct ones."""
    tables = {}
    for name, trained in trained_models.items():
        try:
            generator = trained.generator(Decoding(max_new_tokens=48))
        # A contrastive run has no decoder.
        except ConfigError as error:
            log(f"no samples of {name}: {error}")
            continue
        questions = _scenes_with_questions(trained)
        prompts = [
            Prompt(question, scene.image, number)
            for number, (scene, question) in enumerate(questions)
        ]
        # One table for the runs that answered the same questions.
        outputs = tables.setdefault(tuple(question for _, question in questions), {})
        outputs[name] = questions, generator(prompts)
    return "".join(_table(outputs) for outputs in tables.values())


def _table(
    outputs: Mapping[str, tuple[list[tuple[CaptionedImage, str]], list[str]]],
) -> str:
    """Returns a row for each scene; name -> (scenes with questions, answers)."""
    scenes = next(iter(outputs.values()))[0]
    rows = [
        [
            page.scene(encode_png(scene.image), scene.name),
            f"{question} {scene.caption}".strip(),
            *(answers[number] for _, answers in outputs.values()),
        ]
        for number, (scene, question) in enumerate(scenes)
    ]
    return page.table(["scene", "right", *outputs], rows, words=True)


def _scenes_with_questions(trained: TrainedModel) -> list[tuple[CaptionedImage, str]]:
    """Returns built-in scenes, with a question where the run was trained to answer."""
    config = trained.config
    if config.data.source != "tabletop:questions":
        # From 100 on: the first scenes are those of the pictures.
        return [(one, "") for one in captioned_scenes(config, _SAMPLES, first=100)]
    size = config.model.encoder.image_size
    source = Tabletop("test", image_size=size, text="questions")
    scenes = []
    for index in range(100, 100 + _SAMPLES):
        sample = source[index]
        # Two segments: the question without a target, and the answer.
        question, answer = (segment.text.strip() for segment in sample.segments)
        scenes.append(
            (CaptionedImage(f"scene {index}", sample.image, answer), question)
        )
    return scenes
