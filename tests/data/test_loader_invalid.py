"""Invalid samples in the batches of a loader."""

import json

import numpy as np
import pytest
from helpers.numbered_samples import (
    BAD,
    BATCH,
    SIZE,
    Damaged,
    Numbers,
    indices,
    order_of,
)

from hive_jax.data.invalid import InvalidSampleLog
from hive_jax.data.sources.base import Mixture
from hive_jax.errors import DataError, OutputError


def test_a_bad_sample_keeps_its_place_without_weight(make_loader, tabletop):
    whole = indices(make_loader(Numbers()).batches(0, 5))
    loader = make_loader(Damaged())
    for batch, wanted in zip(loader.batches(0, 5), whole, strict=True):
        for row, index in enumerate(wanted):
            image, tokens = np.asarray(batch.image[row]), np.asarray(batch.tokens[row])
            if index in BAD:
                assert not image.any() and (tokens == tabletop.pad_id).all()
                assert not np.asarray(batch.target[row]).any()
                assert not np.asarray(batch.image_mask[row]).any()
            else:
                assert (image == index).all() and np.asarray(batch.target[row]).any()


def test_bad_samples_are_counted_once_and_named(make_loader, tmp_path):
    invalid = InvalidSampleLog("train", SIZE, 0.5)
    invalid.keep_in(tmp_path / "bad.jsonl", 0)
    list(make_loader(Damaged(), invalid=invalid).batches(0, 3 * SIZE // BATCH))
    counts = {"missing": 8, "not an image": 1, "no target": 1}
    assert invalid.counts == counts and len(invalid) == len(BAD)
    lines = [*map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())]
    assert sorted(line["index"] for line in lines) == sorted(BAD)
    order = order_of(make_loader(Numbers()).batches(0, 3 * SIZE // BATCH))
    for line in lines:
        assert line["where"] == f"number {line['index']}"
        assert order.index(line["index"]) == line["position"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_counts_go_on_where_a_killed_run_had_saved(make_loader, tmp_path, stop):
    def read(path, start, stop):
        invalid = InvalidSampleLog("train", SIZE, 0.5)
        invalid.keep_in(path, start * BATCH)
        list(make_loader(Damaged(), invalid=invalid).batches(start, stop))
        return invalid.counts

    wanted = read(tmp_path / "whole.jsonl", 0, 5)
    read(tmp_path / "killed.jsonl", 0, 4)
    with (tmp_path / "killed.jsonl").open("a") as file:
        file.write('{"split": "tra')
    assert read(tmp_path / "killed.jsonl", stop, 5) == wanted
    whole, killed = ((tmp_path / f"{n}.jsonl").read_text() for n in ("whole", "killed"))
    assert whole == killed


def test_both_splits_are_kept_in_one_file(make_loader, tmp_path):
    for _ in range(2):
        for split in ("train", "validation"):
            invalid = InvalidSampleLog(split, SIZE, 0.5)
            invalid.keep_in(tmp_path / "bad.jsonl", 0)
            list(make_loader(Damaged(), invalid=invalid).batches(0, 5))
    lines = [*map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())]
    splits = [line["split"] for line in lines]
    assert splits == ["train"] * len(BAD) + ["validation"] * len(BAD)


def test_validation_keeps_what_it_has_found(make_loader, tmp_path):
    """A finished run that is started again reads nothing, and forgets nothing."""
    path = tmp_path / "bad.jsonl"
    invalid = InvalidSampleLog("validation", SIZE, 0.5)
    invalid.keep_in(path, 0)
    list(make_loader(Damaged(), invalid=invalid).batches(0, 5))
    before, again = path.read_text(), InvalidSampleLog("validation", SIZE, 0.5)
    again.keep_in(path, None)
    assert again.counts == invalid.counts and path.read_text() == before
    list(make_loader(Damaged(), invalid=again).batches(0, 5))
    assert again.counts == invalid.counts and path.read_text() == before


def test_a_sample_that_a_mixture_repeats_is_one(make_loader, tmp_path):
    small, large = Damaged(), Numbers(1000)
    small.fingerprint = large.fingerprint = "numbers"
    large.describe = lambda index: f"large {index}"
    mixed = Mixture([small, large], [0.5, 0.5])
    invalid = InvalidSampleLog("train", len(mixed), 1.0, mixed.describe)
    invalid.keep_in(tmp_path / "bad.jsonl", 0)
    list(make_loader(mixed, invalid=invalid).batches(0, len(mixed) // BATCH))
    assert sum(invalid.counts.values()) == len(invalid) == len(BAD)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == len(BAD)
    share = len(invalid.reasons) / len(mixed)  # of what the run reads
    assert share == pytest.approx(len(BAD) / SIZE / 2, rel=0.02)


def test_lines_of_others_are_not_kept(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = {"split": "train", "position": 3, "index": 5, "reason": "missing"}
    lines = [good, good | {"index": "5"}, good | {"index": 99}, [1], 7, {"split": 1}]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(b'{"\xff": 1}\nnothing\n' + content + b'{"split": "tra')
    invalid = InvalidSampleLog("train", SIZE, 0.5)
    invalid.keep_in(path, 100)
    assert invalid.reasons == {5: "missing"}
    kept = [*map(json.loads, path.read_text().splitlines())]
    assert kept == [good, good | {"index": 99}]
    invalid.keep_in(path, 3)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == []
    with pytest.raises(OutputError, match="Is a directory"):
        invalid.keep_in(tmp_path, 0)


def test_too_many_bad_samples_end_the_run(make_loader, tmp_path):
    invalid = InvalidSampleLog("train", SIZE, 0.2)
    invalid.keep_in(tmp_path / "bad.jsonl", 0)
    loader = make_loader(Damaged(), invalid=invalid)
    message = "9 of 37 train samples cannot be used: .*missing.*number .*bad.jsonl"
    with pytest.raises(DataError, match=message):
        list(loader.batches(0, 5))
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) >= 8
    with pytest.raises(DataError, match="max_bad_fraction allows 0.00%"):
        list(
            make_loader(
                Damaged(), invalid=InvalidSampleLog("train", SIZE, 0.0)
            ).batches(0, 2)
        )
