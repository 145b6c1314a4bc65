"""Pictures of runs, and the page that has them all."""

import base64
import dataclasses
import html.parser
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.exported_runs import run_config
from helpers.random_runs import save_random, save_talking
from PIL import Image

from hive_jax import visualize as visualize_tool
from hive_jax.analysis.examples import captioned_file, captioned_scenes
from hive_jax.analysis.visualize import newest_run, visualize
from hive_jax.data.invalid import InvalidSample
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.inference.model import load_run
from tools.report import __main__ as report_command
from tools.report.included import included
from tools.report.page import page, picture, table
from tools.report.report import write_report

ROOT = Path(__file__).resolve().parents[2]
METRICS = (
    '{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/loss": 2.0}\n',
    '{"step": 1, "train/loss": 4.0}\n',
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Fusion -> workdir of a run that says words, with what a trained one has there."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    for fusion, metrics in zip(("hive", "self_attention"), METRICS, strict=True):
        workdir = root / fusion
        save_talking(str(workdir), fusion)
        (workdir / "metrics.jsonl").write_text(metrics)
        result = {"validation": {"loss": 1.25}, "relative_distance": {"img": 0.5}}
        (workdir / "result.json").write_text(json.dumps(result))
        found[fusion] = str(workdir)
    return found


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    """All pictures of the run with cross-attention, by the command."""
    out = tmp_path_factory.mktemp("pictures")
    arguments = ["--run", runs["hive"], "--out", str(out), "--scenes", "1"]
    arguments += ["--beside", f"sa={runs['self_attention']}", "--localization", "2"]
    assert visualize_tool.main(arguments) == 0
    return out


def figures(folder):
    return json.loads((folder / "figures.json").read_text())


def test_every_kind_is_drawn(drawn):
    found = figures(drawn)
    kinds = {"gradients", "flow", "attention", "heads", "layers", "changes", "curves"}
    assert found["pictures"].keys() == kinds and not found["left_out"]
    for files in found["pictures"].values():
        for file in files:
            with Image.open(drawn / file) as image:
                assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    assert len(found["pictures"]["heads"]) == 2
    assert [len(sizes) for sizes in found["flow"].values()] == [8, 8]
    assert found["flow"].keys() == {"hive", "sa"}
    # The encoder is the base one, as it came along.
    np.testing.assert_allclose(found["changes"]["cka"], 1, atol=1e-6)
    np.testing.assert_allclose(found["changes"]["distance"], 0, atol=1e-6)
    assert found["localization"].keys() == {
        "attention",
        "hit_rate",
        "gradient",
        "distinguished",
    }
    assert found["run"]["step"] == 7


def odd_image(kind: str) -> Image.Image:
    rng = np.random.default_rng(0)
    height, width, channels = {
        "wide": (20, 300, 3),
        "tiny": (1, 1, 3),
        "rgba": (50, 40, 4),
        "grey": (50, 40, 1),
    }[kind]
    pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


@pytest.mark.parametrize("kind", ["wide", "tiny", "rgba", "grey"])
def test_images_of_all_kinds(kind, runs, tmp_path):
    odd_image(kind).save(tmp_path / "odd.png")
    config = load_run(runs["hive"]).config
    shown = captioned_file(str(tmp_path / "odd.png"), "a red star", config)
    assert shown.image.shape == (64, 64, 3) and shown.name == "odd"


def test_images_that_are_none(runs, tmp_path):
    config = load_run(runs["hive"]).config
    with pytest.raises(MissingInputError, match="no such file"):
        captioned_file(str(tmp_path / "none.png"), "", config)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InvalidSample):
        captioned_file(str(tmp_path / "text.png"), "", config)
    Image.new("1", (30_001, 2)).save(tmp_path / "long.png")
    with pytest.raises(InvalidSample, match="30,001"):
        captioned_file(str(tmp_path / "long.png"), "", config)


def test_a_long_caption(runs, tmp_path):
    """Of 500 words the first are drawn, and the picture says so."""
    odd_image("wide").save(tmp_path / "odd.png")
    trained = load_run(runs["hive"])
    shown = [
        captioned_file(str(tmp_path / "odd.png"), "$red_star " * 500, trained.config)
    ]
    found = visualize(trained, shown, str(tmp_path / "out"))
    assert not found["left_out"]
    assert {"attention", "gradients", "heads"} <= found["pictures"].keys()
    with Image.open(tmp_path / "out" / found["pictures"]["attention"][0]) as image:
        assert image.width < 4000


def test_without_a_caption_there_are_the_features(runs, tmp_path, capsys):
    trained = load_run(runs["hive"])
    shown = [dataclasses.replace(captioned_scenes(trained.config, 1)[0], caption=" ")]
    found = visualize(trained, shown, str(tmp_path))
    assert found["left_out"].keys() == {"gradients", "attention"}
    assert found["pictures"].keys() == {"layers"}
    assert "no gradients: no image has a caption" in capsys.readouterr().out


def test_a_run_without_cross_attention(runs, tmp_path):
    trained = load_run(runs["self_attention"])
    found = visualize(trained, captioned_scenes(trained.config, 1), str(tmp_path))
    assert found["pictures"].keys() == {"gradients", "layers"}
    assert found["left_out"].keys() == {"attention"}
    assert "has no cross-attention to draw" in found["left_out"]["attention"]


@pytest.mark.parametrize("kind", ["contrastive", "none"])
def test_towers_alone(kind, tmp_path):
    """What they have is drawn, and all that is missing has its reason."""
    save_random(run_config(kind), str(tmp_path / "run"))
    write_report(str(tmp_path / "page.html"), {"one": str(tmp_path / "run")})
    said = "".join(Page((tmp_path / "page.html").read_text("utf-8")).said)
    assert "has no text that reads the image" in said
    assert ("has no encoder" in said) == (kind == "none")
    assert "Configuration" in said


def test_the_newest_run(runs, tmp_path):
    for number, name in enumerate(("old", "new")):
        (tmp_path / name).mkdir()
        shutil.copy(Path(runs["hive"]) / "metrics.jsonl", tmp_path / name)
        os.utime(tmp_path / name / "metrics.jsonl", (number, number))
    assert newest_run(str(tmp_path)) == str(tmp_path / "new")
    with pytest.raises(MissingInputError, match="train one first"):
        newest_run(str(tmp_path / "none"))


class Page(html.parser.HTMLParser):
    """What a page has, and what it asks others for."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.links, self.open, self.said = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.images.append(attrs["src"])
        elif tag == "a":
            self.links.append(attrs["href"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def test_the_page_needs_no_other_file(runs, drawn, tmp_path):
    chart = tmp_path / "cost"
    chart.mkdir()
    file = figures(drawn)["pictures"]["curves"][0]
    shutil.copy(drawn / file, chart / "step.png")
    (chart / "step.json").write_text("{}")
    out = tmp_path / "report.html"
    named = [f"{name}<b>={workdir}" for name, workdir in runs.items()]
    arguments = [*named, "--out", str(out), "--include", str(chart)]
    assert report_command.main(arguments) == 0
    text = out.read_text("utf-8")
    found = Page(text)
    assert all(link.startswith("#") for link in found.links) and "url(" not in text
    assert "prefers-color-scheme: dark" in text and "viewport" in text
    for source in found.images:
        assert source.startswith("data:image/png;base64,")
        content = base64.b64decode(source.split(",")[1], validate=True)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    said = "\n".join(found.said)
    for heading in ("Results", "Samples", "What moved", "Cost", "Configuration"):
        assert heading in said
    assert "hive<b>" in said  # escaped in the source
    assert "has no cross-attention to draw" in said
    assert "1.250" in said and "5.0e-01" in said
    # 6 samples; curves, flow, changes, one chart; each run's 2 + 2 + 1, of the one
    # without cross-attention 2 + 1.
    assert len(found.images) == 6 + 4 + 5 + 3


def test_a_damaged_evaluation_is_an_error(runs, tmp_path):
    shutil.copytree(runs["hive"], tmp_path / "run")
    folder = tmp_path / "run/evaluation/gqa"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    (folder / "samples.jsonl").write_text("")
    with pytest.raises(DataError, match="gqa/result.json is not JSON"):
        write_report(str(tmp_path / "out.html"), {"one": str(tmp_path / "run")})
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--caption", "a dog"], "expected --image too"),
        (["--localization", "-1"], "--localization is -1"),
        (["--scenes", "0"], "--scenes is 0"),
    ],
)
def test_flags_that_are_wrong(arguments, said, runs, tmp_path, capsys):
    out = tmp_path / "out"
    code = visualize_tool.main(["--run", runs["hive"], "--out", str(out), *arguments])
    assert code == ConfigError.exit_code and said in capsys.readouterr().err
    assert not out.exists()


def test_the_run_itself_is_not_beside_itself(runs, tmp_path):
    trained = load_run(runs["hive"])
    shown = captioned_scenes(trained.config, 1)
    found = visualize(trained, shown, str(tmp_path), beside={"hive": runs["hive"]})
    assert "'hive' is the name of the run itself" in found["left_out"]["flow"]


def test_what_cannot_be_reported(runs, tmp_path):
    out = str(tmp_path / "out.html")
    with pytest.raises(MissingInputError):
        write_report(out, {"none": str(tmp_path / "none")})
    with pytest.raises(
        MissingInputError, match=r"expected a folder of hive_jax.compare"
    ):
        write_report(out, runs, include=[str(tmp_path)])
    assert not Path(out).exists()
    assert (
        report_command.main([f"a={runs['hive']}", f"a={runs['hive']}"])
        == ConfigError.exit_code
    )


def test_what_is_included(tmp_path):
    found = dict(included(str(ROOT / "docs/reproduction")))
    assert [*found] == ["Comparison", "Accuracy by depth"]
    assert "self_attention" in found["Comparison"]
    ((heading, _),) = included(str(ROOT / "docs/benchmark"))
    assert heading == "Cost"
    for name in ("compare.json", "hive_export.json"):
        (tmp_path / name).write_text('{"rows": [{}]}')
        with pytest.raises(DataError, match=name):
            included(str(tmp_path))


def test_what_stands_in_a_page_is_text(tmp_path):
    made = page("a & b", "<script>", [("empty", ""), ("one", table(["x"], [["<i>"]]))])
    assert "<script>" not in made and "<i>" not in made and "empty" not in made
    path = tmp_path / "x.png"
    Image.new("RGB", (2, 2)).save(path)
    assert 'alt="a &quot;b&quot;"' in picture(path, 'a "b"')
