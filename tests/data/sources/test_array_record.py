"""Sets in ArrayRecord: the same samples, whatever happens while they are written."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
from helpers.llava_sets import write_damaged_set

from hive_jax import prepare_data
from hive_jax.config import DataConfig
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.array_record import unpack
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import make_source, whole_source
from hive_jax.data.transforms import decode
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.locks import exclusive_lock

if importlib.util.find_spec("array_record") is None:
    pytest.skip("needs array_record", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

COUNT = 23
SHARD = {"file": "a", "records": 1, "bytes": 1, "sha256": ""}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A set with three bad samples and one of text alone."""
    folder = tmp_path_factory.mktemp("set")
    return write_damaged_set(folder, COUNT)["zip"]


def samples(text: str, size=16, preprocessing="hf_bicubic") -> list:
    """Every sample, a bad one as its reason."""
    one = whole_source(text, SourceOptions(size, preprocessing))

    def read(index):
        try:
            sample = one[index]
            image = sample.image
            if isinstance(image, bytes):
                image = decode(image, size, preprocessing, one.describe(index))
            image = None if image is None else image.tobytes()
            return image, sample.segments, sample.image_before
        except InvalidSample as bad:
            return bad.reason

    return [read(i) for i in range(len(one))]


def prepare(source, out, *more) -> int:
    arguments = ["--from", source, "--out", str(out), "--shard_size", "5", *more]
    return prepare_data.main(arguments)


def test_every_sample_is_there_as_it_was(source, tmp_path):
    out = tmp_path / "prepared"
    assert prepare(source, out) == 0
    assert samples(f"prepared:{out}") == samples(source)
    assert samples(source)[6] == "record" and samples(source)[8] == "not an image"
    manifest = json.loads((out / "manifest.json").read_text())
    assert [shard["records"] for shard in manifest["shards"]] == [5, 5, 5, 5, 3]
    assert manifest["bad"] == {"record": 1, "missing": 1}
    names = {path.name for path in out.iterdir()}
    assert names == {"manifest.json"} | {f"data-0000{i}.array_record" for i in range(5)}
    data = DataConfig(source=f"prepared:{out},take=first:20", validation_size=4)
    assert len(make_source(data, "train", image_size=16, with_image=True)) == 16


def test_resized_images_are_those_of_training(source, tmp_path):
    out = tmp_path / "prepared"
    assert prepare(source, out, "--size", "16") == 0
    assert samples(f"prepared:{out}") == samples(source)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["bad"] == {"record": 1, "not an image": 1, "missing": 1}
    with pytest.raises(ConfigError, match=r"resized to \[16, 'hf_bicubic'\]; this run"):
        samples(f"prepared:{out}", size=32)
    with pytest.raises(ConfigError, match="hf_bilinear"):
        samples(f"prepared:{out}", preprocessing="hf_bilinear")


def test_the_built_in_world(tmp_path):
    out = tmp_path / "prepared"
    assert prepare("tabletop:questions,take=first:7", out, "--size", "24") == 0
    wanted = samples("tabletop:questions,take=first:7", size=24)
    assert samples(f"prepared:{out}", size=24) == wanted


@pytest.mark.parametrize("kills", [1, 3])
def test_it_goes_on_after_a_kill(source, tmp_path, kills):
    """Killed while a shard is half written; the result is that of one go."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    tool = Path(prepare_data.__file__)
    command = [sys.executable, str(tool), "--from", source, "--out", str(out)]
    command += ["--shard_size", "5", "--threads", "1"]
    for done in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not list(out.glob(f"*data-0000{done}.*")) and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert prepare(source, out) == 0 or (out / "manifest.json").exists()
    prepare(source, whole)
    assert samples(f"prepared:{out}") == samples(f"prepared:{whole}")
    one, two = (json.loads((p / "manifest.json").read_text()) for p in (out, whole))
    assert one == two


def content(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_one_set(source, tmp_path, capsys):
    """Which the same command leaves as it is; also if it was killed at its very end."""
    out = tmp_path / "prepared"
    prepare(source, out)
    whole = content(out)
    assert prepare(source, out) == 0 and content(out) == whole
    assert prepare(source, out, "--shard_size", "6") == 73
    assert "holds another dataset (shard_size: 5 -> 6)" in capsys.readouterr().err
    for name in ("plan.json", "data-00003.json", "data-00004.json"):
        (out / name).write_text("{}")
    assert prepare(source, out) == 0 and content(out) == whole
    (out / "manifest.json").unlink()
    with pytest.raises(MissingInputError, match="expected a complete folder"):
        samples(f"prepared:{out}")


@pytest.mark.parametrize("plan", [b"", b"[]", b'{"source": "li', b"\xff"])
def test_a_plan_that_is_cut_short(source, tmp_path, capsys, plan):
    out = tmp_path / "prepared"
    out.mkdir()
    (out / "plan.json").write_bytes(plan)
    assert prepare(source, out) == 73
    assert "plan.json" in capsys.readouterr().err


def test_a_shard_is_written_again_if_it_is_not_known_to_be_whole(source, tmp_path):
    out = tmp_path / "prepared"
    prepare(source, out)
    whole = content(out)
    manifest = json.loads((out / "manifest.json").read_text())
    keys = manifest.keys() - {"bad", "shards"}
    (out / "manifest.json").unlink()
    (out / "plan.json").write_text(json.dumps({key: manifest[key] for key in keys}))
    for number, shard in enumerate(manifest["shards"]):
        shard["images"] = [None] * shard["records"]
        (out / f"data-0000{number}.json").write_text(json.dumps(shard))
    (out / "data-00001.json").write_text('{"file": "da')
    (out / "data-00002.array_record").unlink()
    assert prepare(source, out) == 0 and content(out) == whole


def test_one_writer_at_a_time(source, tmp_path, capsys):
    out = tmp_path / "prepared"
    with exclusive_lock(out):
        assert prepare(source, out) == 73
        assert "another process is writing it" in capsys.readouterr().err
    assert prepare(source, out) == 0


@pytest.mark.parametrize("size", [100, 2000, 5000])
def test_a_full_disk_is_a_message(source, tmp_path, size):
    """Whatever is written when it is full: the plan, a shard as it goes or its end."""
    tool, out = prepare_data.__file__, tmp_path / "prepared"
    limited = (
        "import resource, runpy, sys; del sys.argv[0]; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [sys.executable, "-c", limited, tool, "--from", source]
    done = subprocess.run(
        [*arguments, "--out", str(out), "--shard_size", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 73 and "Traceback" not in done.stderr
    assert f"error: cannot write {out}" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--size", "-5"), "--size must be 1 or more"),
        (("--shard_size", "0"), "--shard_size must be 1 or more"),
    ],
)
def test_numbers_that_are_none(source, tmp_path, capsys, more, said):
    with pytest.raises(SystemExit):
        prepare(source, tmp_path / "prepared", *more)
    assert said in capsys.readouterr().err


def test_few_samples_are_read_ahead():
    began, most = [], []
    for index in ordered_map(lambda i: began.append(i) or i, range(200), 3):
        most.append(len(began) - index)
    assert sorted(began) == [*range(200)] and max(most) <= 7


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"tag_names": [], "images": null, "shared_images": {}, "shards": []}',
        '{"tag_names": [], "images": null, "shared_images": {}, "shards": [{"file": "a"}]}',
        '{"tag_names": [], "images": 5, "shards": [{}]}',
        json.dumps(
            {
                "tag_names": [],
                "images": None,
                "shared_images": {},
                "shards": [SHARD | {"file": "../a"}],
            }
        ),
        json.dumps(
            {"tag_names": [], "images": 5, "shared_images": {}, "shards": [SHARD]}
        ),
        json.dumps(
            {
                "tag_names": [],
                "images": None,
                "shared_images": {},
                "shards": [SHARD | {"records": 0}],
            }
        ),
        json.dumps(
            {"tag_names": [5], "images": None, "shared_images": {}, "shards": [SHARD]}
        ),
        json.dumps(
            {"tag_names": [], "images": None, "shared_images": [], "shards": [SHARD]}
        ),
    ],
)
def test_a_manifest_of_others(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match="was not written by|expected an object"):
        samples(f"prepared:{tmp_path}")


def test_a_manifest_that_miscounts(source, tmp_path):
    out = tmp_path / "prepared"
    prepare(source, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][1]["records"] = 6
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="5 records; the manifest says 6"):
        samples(f"prepared:{out}")


@pytest.mark.parametrize(
    "record",
    [
        *(7, None, "abc", {}, {0: 1, 1: 2, 2: 3}, [], [None, [], "0"]),
        *([1, [], 0], [None, 5, 0], [None, ["text"], 0], [None, [["text", 1, []]], 0]),
        [None, [["text", True, [[0, 1, "smell"]]]], 0],
        [None, [["text", True, [[0, "colour"]]]], 0],
        ["reason", 5, "detail"],
    ],
)
def test_records_of_others_are_damaged_samples(record):
    with pytest.raises(InvalidSample, match="here: ") as raised:
        unpack(msgpack.packb(record), "here")
    assert raised.value.reason == "damaged"


def test_half_of_another_set(source, tmp_path, capsys):
    out = tmp_path / "prepared"
    prepare(source, out)
    manifest = json.loads((out / "manifest.json").read_text())
    keys = manifest.keys() - {"bad", "shards"}
    plan = {key: manifest[key] for key in keys} | {"samples": 99}
    (out / "plan.json").write_text(json.dumps(plan))
    (out / "manifest.json").unlink()
    assert prepare(source, out) == 73
    assert "samples: 99 -> 23" in capsys.readouterr().err
    assert prepare(source, "gs://bucket/set") == 64
    assert "gcloud storage cp" in capsys.readouterr().err
    assert not os.path.exists("gs:")


def test_damage_is_noticed(source, tmp_path):
    out = tmp_path / "prepared"
    prepare(source, out)
    whole = samples(f"prepared:{out}")
    shard = out / "data-00001.array_record"
    content = shard.read_bytes()
    rng = np.random.default_rng(0)
    wrong = 0
    for place in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(damaged)
        try:
            got = samples(f"prepared:{out}")
        except DataError:
            continue
        allowed = [{"damaged", "not an image", one} for one in whole]
        assert all(g in a for g, a in zip(got, allowed, strict=True))
        wrong += got != whole
    assert wrong
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{len(content) - 1} bytes; expected"):
        samples(f"prepared:{out}")
    shard.unlink()
    with pytest.raises(MissingInputError, match="no such shard"):
        samples(f"prepared:{out}")
