"""Folders of classes, CSV and Parquet, made here in the real formats."""

import importlib.util
import json
import zipfile

import pytest
from llava_sets import encoded, photograph

from hive_jax.data.bad import BadSample
from hive_jax.data.sources import Opening, whole_source
from hive_jax.errors import ConfigError, DataError, MissingInputError

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
IMAGES = {f"{name}/{i}.jpg": encoded(photograph(i)) for i, name in enumerate("ab" * 3)}


def opened(text: str):
    return whole_source(text, Opening(16, "hf_bicubic"))


def content(source) -> list[tuple[bytes, str]]:
    samples = [source[i] for i in range(len(source))]
    return [(sample.image, sample.segments[0].text) for sample in samples]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name, image in IMAGES.items():
        path = root / {"a": "hot_dog", "b": "Pizza/inner"}[name[0]] / name[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (root / "README.txt").write_text("not an image")
    (root / "hot_dog/labels.csv").write_text("not an image")
    return root


def test_folders_are_classes(folder):
    source = opened(f"folder:{folder}")
    wanted = [(f"b/{i}.jpg", "Pizza") for i in (1, 3, 5)]
    wanted += [(f"a/{i}.jpg", "hot dog") for i in (0, 2, 4)]
    assert content(source) == [
        (IMAGES[name], f"a photo of a {label}\n") for name, label in wanted
    ]
    assert "Pizza/inner/1.jpg" in source.where(0)
    fingerprint = source.fingerprint
    (folder / "hot_dog/4.jpg").rename(folder / "hot_dog/6.JPEG")
    assert opened(f"folder:{folder}").fingerprint != fingerprint
    assert len(opened(f"folder:{folder},take=first:2")) == 2


def test_folders_that_are_no_set(folder, tmp_path):
    with pytest.raises(MissingInputError, match="no such folder"):
        opened("folder:nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one for each class"):
        opened(f"folder:{tmp_path}/empty")


def test_csv(tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name, image in IMAGES.items():
            out.writestr(name, image)
    path = tmp_path / "labels.csv"
    rows = "".join(f'{name},"{name[0]}, or not"\n' for name in IMAGES)
    path.write_text("\ufefffile,caption\n" + rows + "a/0.jpg,\n../x,no\n", "utf-8")
    source = opened(f"table:{path},images={archive},image=file,text=caption")
    assert len(source) == len(IMAGES) + 2
    for index, (name, image) in enumerate(IMAGES.items()):
        sample = source[index]
        assert sample.image == image
        assert sample.segments[0].text == f"{name[0]}, or not\n"
    for index, reason in ((6, "record"), (7, "unsafe path")):
        with pytest.raises(BadSample) as caught:
            source[index]
        assert caught.value.reason == reason
    path.write_text("image,label\na/0.jpg,hot_dog\n")
    sample = opened(f"table:{path},images={archive}")[0]
    assert sample.segments[0].text == "a photo of a hot dog\n"
    with pytest.raises(ConfigError, match="say where its images are"):
        opened(f"table:{path}")
    with pytest.raises(DataError, match="columns image, label; expected img, and"):
        opened(f"table:{path},images={archive},image=img")
    with pytest.raises(MissingInputError, match="no such file"):
        opened(f"table:{tmp_path}/no.csv,images={archive}")
    path.write_text("image,label\n")
    with pytest.raises(DataError, match="has no samples"):
        opened(f"table:{path},images={archive}")


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow")
def test_parquet_with_the_classes_of_hugging_face(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"img": {"bytes": image, "path": name}, "fine_label": int(name[0] == "b")}
        for name, image in IMAGES.items()
    ]
    rows.append({"img": None, "fine_label": 1})
    table = pyarrow.Table.from_pylist(rows)
    features = {"fine_label": {"names": ["hot_dog", "pizza"], "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    source = opened(f"table:{tmp_path},image=img,label=fine_label")
    texts = [
        ("a photo of a hot dog\n", "a photo of a pizza\n")[i % 2] for i in range(6)
    ]
    got = [source[i] for i in range(6)]
    assert [sample.image for sample in got] == list(IMAGES.values())
    assert [sample.segments[0].text for sample in got] == texts
    with pytest.raises(BadSample, match="the row has no bytes") as caught:
        source[6]
    assert caught.value.reason == "missing"
