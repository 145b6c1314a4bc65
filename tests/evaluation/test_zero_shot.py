"""Zero-shot classification and retrieval with two towers."""

import dataclasses

import numpy as np
import pytest
from helpers.exported_runs import run_config
from helpers.llava_sets import encoded, photograph
from helpers.probes import BUILTIN, HOW, SMALL, read
from helpers.random_runs import save_random
from helpers.tars import write_tar

from hive_jax.data.sources.registry import whole_source
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import CheckpointError
from hive_jax.evaluation import zero_shot
from hive_jax.inference import model


def test_zero_shot(tmp_path):
    config = dataclasses.replace(SMALL, probe="zero_shot")
    found = zero_shot.evaluate_towers(config, model.load(BUILTIN), tmp_path)
    result, samples = read(tmp_path / "zero_shot")
    assert result == found and len(samples) == 100
    # Shapes are named in its texts, materials hardly ever.
    shapes = [s["output"].split()[1] == s["answers"][0].split()[1] for s in samples]
    assert np.mean(shapes) > 0.8
    assert found["scores"]["accuracy_top5"] > found["scores"]["accuracy"] > 5
    again = zero_shot.evaluate_towers(config, model.load(BUILTIN), tmp_path)
    assert again == found


def test_retrieval(tmp_path):
    test = "tabletop:vague,split=test,take=first:60"
    config = dataclasses.replace(SMALL, probe="retrieval", test=test)
    found = zero_shot.evaluate_towers(config, model.load(BUILTIN), tmp_path)
    scores = found["scores"]
    for way in ("image_to_text", "text_to_image"):
        one, five, ten = (scores[f"{way}_recall@{k}"] for k in zero_shot.RANKS)
        assert 20 < one < five < ten <= 100  # of 60 texts, a guess finds 1.7 %
    _, samples = read(tmp_path / "retrieval")
    hits = [sample["output"] == sample["answers"][0] for sample in samples]
    assert scores["image_to_text_recall@1"] == pytest.approx(100 * np.mean(hits))


def test_ranks():
    likeness = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert zero_shot._ranks(likeness, np.array([2, 0])).tolist() == [1, 0]


def captions(texts: str, images: str) -> list[Sample]:
    """Samples of one letter each, and the content of their images."""
    return [
        Sample(image.encode(), (Segment(text + "\n"),))
        for text, image in zip(texts, images, strict=True)
    ]


def retrieval(monkeypatch, source, images, words):
    """Samples and scores of one-hot embeddings: `images` by row, `words` by text."""

    class Model:
        def embed_texts(self, texts):
            return np.eye(4, dtype=np.float32)[[words[text] for text in texts]]

    def embed_images(config, model, source, rows):
        return np.eye(4, dtype=np.float32)[np.take(images, rows)]

    monkeypatch.setattr(zero_shot, "_embed_images", embed_images)
    samples, scores, _, counts = zero_shot._retrieval(SMALL, Model(), source)
    samples = list(samples)
    assert set(counts) == set(scores)
    assert counts["image_to_text_recall@1"] == len(samples)
    assert counts["text_to_image_recall@1"] == len(words)
    return samples, scores


def test_captions_of_one_image_are_one_candidate(monkeypatch):
    """As in COCO: six rows, of two images with two captions and two with one."""
    source = captions("abcdef", "001123")
    words = {"a": 0, "b": 1, "c": 0, "d": 1, "e": 2, "f": 3}
    samples, scores = retrieval(monkeypatch, source, [0, 0, 1, 1, 2, 3], words)
    assert [s["id"] for s in samples] == ["0", "2", "4", "5"]
    assert samples[1]["answers"] == ["c", "d"] and samples[1]["score"] == 1.0
    assert scores["image_to_text_recall@1"] == 100.0
    # "b" and "c" are nearer to the other image.
    assert scores["text_to_image_recall@1"] == pytest.approx(400 / 6)


def test_equal_texts_are_equally_good(monkeypatch):
    source = captions("aab", "012")
    words = {"a": 1, "b": 2}
    _, scores = retrieval(monkeypatch, source, [0, 1, 2], words)
    # The second and third image find their text; both texts find one of their images.
    assert scores["text_to_image_recall@1"] == 100.0
    assert scores["image_to_text_recall@1"] == 100.0


def test_retrieval_of_captions_in_a_tar(tmp_path, monkeypatch):
    """A tar has no names of images: each caption comes with the whole file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    members = {}
    for row, text in enumerate("abcd"):
        image = encoded(photograph(row // 2))
        members |= {f"{row}.jpg": image, f"{row}.txt": text}
    write_tar(tmp_path / "a.tar", members)
    source = whole_source(f"wds:{tmp_path}/a.tar", HOW)
    words = {"a": 0, "b": 0, "c": 1, "d": 2}
    samples, scores = retrieval(monkeypatch, source, [0, 0, 1, 1], words)
    assert [s["answers"] for s in samples] == [["a", "b"], ["c", "d"]]
    assert scores["image_to_text_recall@1"] == 100.0


def test_zero_shot_needs_a_text_tower(tmp_path):
    save_random(run_config("hive"), str(tmp_path / "run"))
    config = dataclasses.replace(SMALL, probe="zero_shot")
    one_tower = model.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="has no text tower"):
        zero_shot.evaluate_towers(config, one_tower, tmp_path)
    with pytest.raises(CheckpointError, match="has no text tower"):
        one_tower.embed_texts(["a"])
    save_random(run_config("contrastive"), str(tmp_path / "two"))
    embeddings = model.load(tmp_path / "two").embed_texts(["a red star", "a cube"])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
