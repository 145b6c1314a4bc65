"""No image is in both the train and the validation split."""

import json

import numpy as np
import pytest
from helpers.llava_sets import encoded, photograph, record, write_set
from helpers.sources import opened_split
from helpers.tars import write_tar

from hive_jax import prepare_data
from hive_jax.config import DataConfig
from hive_jax.data.sources.registry import make_source
from hive_jax.data.sources.split import group_samples, train_validation_splits
from hive_jax.errors import DataError


class Images:
    """Samples with images of these names; None for text alone."""

    classes = tag_names = notes = ()
    has_conversations = False
    fingerprint = "images"

    def __init__(self, *names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return index

    def image_name(self, index):
        return self.names[index]

    def describe(self, index):
        return f"a.json, record {index}"


def split(*sources, sizes):
    """The indices of the train and of the validation split of each source."""
    parts = train_validation_splits(sources, sizes)
    return [[[s[i] for i in range(len(s))] for s in part] for part in parts]


def test_samples_of_their_own_images_are_held_out_at_equal_distances():
    alone = Images(*map(str, range(10)))
    assert split(alone, sizes=[3]) == [[[1, 2, 4, 5, 7, 8, 9]], [[0, 3, 6]]]
    texts = Images(*[None] * 10)
    assert split(texts, sizes=[3]) == split(alone, sizes=[3])


@pytest.mark.parametrize("repeats", [2, 5])
@pytest.mark.parametrize("ordered", [True, False])
def test_all_captions_of_an_image_are_on_one_side(repeats, ordered):
    names = np.repeat([f"{i}.jpg" for i in range(200)], repeats)
    if not ordered:
        names = np.random.default_rng(0).permutation(names)
    ((train,), (validation,)) = split(Images(*names), sizes=[64])
    assert len(validation) == 64
    held_out = {names[i] for i in validation}
    assert not held_out & {names[i] for i in train}
    assert len(train) == repeats * (200 - len(held_out))
    # Over the whole dataset, not from its start alone.
    numbers = sorted(int(name.split(".")[0]) for name in held_out)
    assert numbers[0] < 20 and numbers[-1] > 180


def test_an_image_that_two_sources_share_is_held_out_of_both():
    one, two = Images("a", "b", "c", "d"), Images("d", "e", "a", None)
    train, validation = split(one, two, sizes=[2, 1])
    assert validation == [[0, 2], [0]]
    assert train == [[1], [1, 3]]


def test_nothing_is_left_to_train_on():
    with pytest.raises(DataError, match="a.json: all 4 samples are of the images"):
        split(Images("a", "a", "a", "a"), sizes=[2])
    with pytest.raises(
        DataError, match="4 samples; expected more than the 9 that data"
    ):
        split(Images(*"abcd"), sizes=[9])


def test_groups_are_named_by_their_first_sample():
    assert group_samples(["a", None, "b", "a", None]).tolist() == [0, 1, 2, 0, 4]


def test_a_converted_tar_knows_equal_images(tmp_path, monkeypatch):
    """Whose captions have an image each, without a name."""
    pytest.importorskip("array_record")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    members = {}
    for row in range(16):
        image = encoded(photograph(row // 2))
        members |= {f"{row:02}.jpg": image, f"{row:02}.txt": f"a {row}"}
    write_tar(tmp_path / "a.tar", members)
    out = tmp_path / "prepared"
    command = ["--from", f"wds:{tmp_path}/a.tar", "--out", str(out)]
    assert prepare_data.main(command) == 0
    train, held_out = (
        opened_split(f"prepared:{out}", part, validation_size=4)
        for part in ("train", "validation")
    )
    shown = [{s[i].image for i in range(len(s))} for s in (train, held_out)]
    assert len(shown[0]) == 6 and len(shown[1]) == 2
    assert not shown[0] & shown[1]


def test_files_in_either_form_are_held_out_by_image(tmp_path):
    """A folder, CSV, Parquet, and what is prepared of them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("array_record")
    files = {record(i)["image"]: encoded(photograph(i)) for i in range(8)}
    # Other spellings of a name are the same image.
    names = [f"{'./' * (i % 2)}{name}" for name in files for i in range(2)]
    records = [record(i, image=name) for i, name in enumerate(names)]
    llava = write_set(tmp_path, files, records)["folder"]
    (tmp_path / "a.csv").write_text(
        "image,text\n" + "".join(f"{name},a {i}\n" for i, name in enumerate(names))
    )
    images = [{"bytes": files[n.removeprefix("./")], "path": n[-5:]} for n in names]
    table = pyarrow.table({"image": images, "text": names})
    parquet.write_table(table, tmp_path / "a.parquet")
    for number, source in enumerate(
        (
            llava,
            f"table:{tmp_path}/a.csv,images={tmp_path}/images",
            f"table:{tmp_path}/a.parquet",
        )
    ):
        out = tmp_path / f"prepared{number}"
        assert prepare_data.main(["--from", source, "--out", str(out)]) == 0
        for text in (source, f"prepared:{out}"):
            train, held_out = (
                make_source(
                    DataConfig(source=text, validation_size=4),
                    part,
                    image_size=16,
                    with_image=True,
                )
                for part in ("train", "validation")
            )
            assert (len(train), len(held_out)) == (12, 4)
            shown = [{s[i].image for i in range(len(s))} for s in (train, held_out)]
            assert len(shown[0]) == 6 and len(shown[1]) == 2
            assert not shown[0] & shown[1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["shared_images"] == {str(2 * i + 1): 2 * i for i in range(8)}
