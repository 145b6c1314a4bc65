"""Batches as a function of (seed, step)."""

import json
import threading
import time

import jax
import numpy as np
import pytest

from hive_jax.config import MeshConfig
from hive_jax.data.image_io import encode_png
from hive_jax.data.invalid import InvalidSample, InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import LengthBucketSampler, ShuffledSampler, count_all_tokens
from hive_jax.data.sources.base import Mixture
from hive_jax.data.tokenizer import encode_sample, load_tokenizer
from hive_jax.data.types import Batch, Sample, Segment
from hive_jax.errors import DataError, OutputError
from hive_jax.training.sharding import batch_sharding, make_mesh

SIZE, BATCH = 37, 8


class Numbers:
    classes = tag_names = notes = ()
    fingerprint = ""
    """Sample i says i, and its image is i all over."""

    def __init__(self, size=SIZE, delay=0.0, target=True):
        self.size = size
        self.delay = delay
        self.target = target
        self.reads = []
        self.lock = threading.Lock()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        with self.lock:
            self.reads.append(index)
        time.sleep(self.delay * (index % 3))
        image = np.full((16, 16, 3), index % 256, np.uint8)
        return Sample(image, (Segment(f" {index}", target=self.target),))

    def describe(self, index):
        return f"number {index}"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("builtin:tabletop")


@pytest.fixture(scope="module")
def make_loader(tokenizer):
    rows = batch_sharding(make_mesh(MeshConfig(data=-1)), BATCH)

    def make(source, sharding=rows, shuffle_seed=0, **changes):
        arguments = {
            "sampler": ShuffledSampler(len(source), shuffle_seed),
            "batch_size": BATCH,
            "num_tokens": 6,
            "image_size": 16,
            "preprocessing": "hf_bicubic",
            "invalid": InvalidSampleLog("train", len(source), 0.5),
            "sharding": sharding,
            "threads": 2,
        }
        return Loader(source, tokenizer, **arguments | changes)

    return make


def indices(batches):
    """The sample numbers of each batch, as its images say."""
    return [np.asarray(batch.image)[:, 0, 0, 0].tolist() for batch in batches]


def order_of(batches):
    """The sample numbers one after the other."""
    return [index for batch in indices(batches) for index in batch]


def test_a_batch_holds_the_samples_side_by_side(make_loader, tokenizer):
    loader = make_loader(Numbers())
    (batch,) = loader.batches(0, 1)
    assert jax.eval_shape(lambda: batch) == Batch.spec(BATCH, 6, 16)
    for row, index in enumerate(indices([batch])[0]):
        image = np.asarray(batch.image[row])
        assert (image == index).all()
        assert tokenizer.decode(np.asarray(batch.tokens[row])) == f" {index}"
    assert batch.tokens.sharding == loader.sharding
    assert {piece.data.shape for piece in batch.tokens.addressable_shards} == {(1, 6)}


@pytest.mark.parametrize("seed", [0, 7, None])
def test_resuming_at_any_step_gives_the_same_batches(make_loader, seed):
    every = indices(make_loader(Numbers(), shuffle_seed=seed).batches(0, 12))
    assert len(every) == 12
    for start in (1, 4, 5, 11, 12):
        loader = make_loader(Numbers(), shuffle_seed=seed)
        assert indices(loader.batches(start, 12)) == every[start:]
        assert indices(loader.batches(0, start)) == every[:start]  # and once more


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_do_not_change_the_order(make_loader, threads):
    one = indices(make_loader(Numbers(), threads=1).batches(0, 6))
    slow = Numbers(delay=0.002)
    assert indices(make_loader(slow, threads=threads).batches(0, 6)) == one


def test_each_epoch_has_each_sample_once_and_its_own_order(make_loader):
    order = order_of(make_loader(Numbers()).batches(0, SIZE))
    assert len(order) == SIZE * BATCH
    epochs = [order[i * SIZE : (i + 1) * SIZE] for i in range(BATCH)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == BATCH


def test_another_seed_is_another_order(make_loader):
    one, two = (
        indices(make_loader(Numbers(), shuffle_seed=seed).batches(0, 3))
        for seed in (0, 1)
    )
    assert one != two


def test_without_a_seed_the_order_is_that_of_the_source(make_loader):
    loader = make_loader(Numbers(), shuffle_seed=None)
    order = order_of(loader.batches(0, 6))
    assert order == [position % SIZE for position in range(48)]
    assert order_of(loader.batches(0, 6)) == order


class RowsOfOneProcess:
    """The sharding as one process of several sees it: some devices are its own."""

    def __init__(self, *bounds):
        self.indices = [(slice(start, stop),) for start, stop in bounds]

    def addressable_devices_indices_map(self, shape):
        return dict(enumerate(self.indices))


def test_a_process_reads_the_rows_of_its_devices(make_loader, monkeypatch):
    every = indices(make_loader(Numbers()).batches(0, 3))
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, rows: np.concatenate(
            [rows(index) for index in sharding.indices]
        ),
    )
    halves = []
    for sharding in (
        RowsOfOneProcess((0, 2), (2, 4)),
        RowsOfOneProcess((4, 6), (6, 8)),
    ):
        source = Numbers()
        halves.append(indices(make_loader(source, sharding).batches(0, 3)))
        assert len(source.reads) == 3 * BATCH // 2
    assert [first + second for first, second in zip(*halves, strict=True)] == every


def by_length(tokenizer, buckets=(3,), batch_size=BATCH):
    tokens = count_all_tokens(Numbers(), tokenizer, 6, 1, lambda count: None)
    return LengthBucketSampler(tokens, 0, batch_size=batch_size, buckets=buckets)


@pytest.mark.parametrize("ordered", [lambda _: ShuffledSampler(SIZE, 0), by_length])
def test_a_thousand_resumes_on_any_number_of_hosts(
    make_loader, tokenizer, monkeypatch, ordered
):
    """Random steps, hosts and threads: always the samples of one host, and each of
    them once an epoch."""
    monkeypatch.setattr(
        jax, "make_array_from_callback", lambda shape, sharding, rows: rows(WHOLE)
    )
    monkeypatch.setitem(WHOLE, 0, slice(0, BATCH))
    ordered = ordered(tokenizer)
    steps = 2 * SIZE  # 16 epochs
    every = indices(
        make_loader(Numbers(), sampler=ordered, threads=1).batches(0, steps)
    )
    order = [index for batch in every for index in batch]
    for epoch in range(len(order) // SIZE):
        assert sorted(order[epoch * SIZE :][:SIZE]) == [*range(SIZE)]
    rng = np.random.default_rng(0)
    different = 0
    for _ in range(1000):
        step, hosts = int(rng.integers(steps)), int(rng.choice([1, 2, 4, 8]))
        threads, rows = int(rng.choice([1, 2, 5])), BATCH // hosts
        got = []
        for host in range(hosts):
            WHOLE[0] = slice(host * rows, (host + 1) * rows)
            sharding = RowsOfOneProcess((host * rows, (host + 1) * rows))
            loader = make_loader(Numbers(), sharding, sampler=ordered, threads=threads)
            got += order_of(loader.batches(step, step + 1))
        different += got != every[step]
    assert different == 0


WHOLE = {0: slice(0, BATCH)}  # the rows of the host that reads


def test_buckets_cut_padding_and_nothing_else(make_loader, tokenizer):
    source, order = Numbers(), by_length(tokenizer)
    lengths = set()
    for batch in make_loader(source, sampler=order).batches(0, 2 * SIZE):
        length = batch.tokens.shape[1]
        assert jax.eval_shape(lambda b=batch: b) == Batch.spec(BATCH, length, 16)
        lengths.add(length)
        for row, index in enumerate(indices([batch])[0]):
            wanted = encode_sample(source[index], tokenizer, 6)
            assert (wanted["tokens"][length:] == tokenizer.pad_id).all()
            assert not wanted["target"][length:].any()
            for key, values in wanted.items():
                got = np.asarray(getattr(batch, key)[row])
                np.testing.assert_array_equal(got, values[:length])
    assert lengths == {3, 6}


def test_a_bad_sample_among_short_ones_is_as_short(make_loader, tokenizer):
    order = by_length(tokenizer)
    for batch in make_loader(Damaged(), sampler=order).batches(0, SIZE):
        assert batch.tokens.shape == batch.target.shape


def test_parts_of_a_batch_have_one_length(make_loader, tokenizer):
    order = by_length(tokenizer, batch_size=2 * BATCH)
    batches = [*make_loader(Numbers(), sampler=order).batches(0, 2 * SIZE)]
    lengths = [batch.tokens.shape[1] for batch in batches]
    assert lengths[::2] == lengths[1::2] and len({*lengths}) == 2


class Photographs(Numbers):
    """Sample i shows the file i."""

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        sample = super().__getitem__(index)
        return Sample(encode_png(image) if index % 2 else image, sample.segments)


def test_augmented_images_are_a_function_of_the_position(make_loader):
    def images(start=0, **options):
        batches = make_loader(Photographs(), **options).batches(start, 2 * SIZE)
        return [np.asarray(batch.image) for batch in batches]

    every = images(augment_seed=0)
    again = images(start=40, augment_seed=0, threads=5)
    np.testing.assert_array_equal(every[40:], again)
    plain = images()
    assert not any(
        (a == b).all((1, 2, 3)).any() for a, b in zip(every, plain, strict=True)
    )
    flat = np.concatenate(every).reshape(-1, 16 * 16 * 3)
    assert len(np.unique(flat, axis=0)) == len(flat)  # no epoch repeats another's
    other = images(augment_seed=1)
    assert not any(
        (a == b).all((1, 2, 3)).any() for a, b in zip(every, other, strict=True)
    )


def test_the_image_of_a_sample_is_never_augmented(make_loader):
    loaders = [make_loader(Photographs(), augment_seed=seed) for seed in (None, 0)]
    for index in range(4):
        one, other = (loader.image(index) for loader in loaders)
        np.testing.assert_array_equal(one, other)


def test_rows_repeated_on_several_devices_are_read_once(make_loader):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    source = Numbers()
    loader = make_loader(source, batch_sharding(mesh, BATCH))
    got = indices(loader.batches(0, 2))
    assert got == indices(make_loader(Numbers()).batches(0, 2))
    assert len(source.reads) == 2 * BATCH


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (np.zeros((16, 8, 3), np.uint8), r"uint8\[16, 8, 3\]"),
        (np.zeros((16, 16), np.uint8), r"uint8\[16, 16\]"),
        (np.zeros((16, 16, 3), np.float32), r"float32\[16, 16, 3\]"),
    ],
)
def test_an_image_of_the_wrong_kind(make_loader, image, came):
    class One(Numbers):
        def __getitem__(self, index):
            return Sample(image if index == 5 else None, (Segment("a"),))

    loader = make_loader(One(), shuffle_seed=None)
    message = (
        rf"{loader.source.describe(5)}: image is {came}; expected uint8\[16, 16, 3\]"
    )
    with pytest.raises(DataError, match=message):
        next(loader.batches(0, 1))


def test_samples_without_an_image_have_a_black_one_that_is_not_seen(make_loader):
    class Texts(Numbers):
        def __getitem__(self, index):
            return Sample(None, (Segment("a cube"),))

    (batch,) = make_loader(Texts()).batches(0, 1)
    assert not np.asarray(batch.image).any()
    assert not np.asarray(batch.image_mask).any()
    assert np.asarray(batch.target).any(axis=1).all()


def test_a_batch_without_a_supervised_token(make_loader):
    loader = make_loader(Numbers(target=False))
    with pytest.raises(DataError, match="8 samples has no supervised .*_tokens = 6"):
        next(loader.batches(0, 1))


def test_a_part_of_two_without_a_supervised_token_is_an_accident(make_loader):
    class Silent(Numbers):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index in (4, 5):
                return Sample(sample.image, (Segment("", True),))
            return sample

    rows = batch_sharding(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), 2)
    options = {"batch_size": 2, "shuffle_seed": None}
    loader = make_loader(Silent(), rows, **options)
    batches = list(loader.batches(0, 4))
    assert loader.invalid.counts == {"no target": 2}
    assert not np.asarray(batches[2].target).any()
    loader = make_loader(Numbers(target=False), rows, **options)
    with pytest.raises(DataError, match="20 of 37 train .*: 20 no target"):
        list(loader.batches(0, 18))


def test_errors_of_a_sample_reach_the_caller_at_its_step(make_loader):
    class Broken(Numbers):
        def __getitem__(self, index):
            if index == 20:  # of step 2
                raise DataError("sample 20 is broken")
            return super().__getitem__(index)

    batches = make_loader(Broken(), shuffle_seed=None).batches(0, 100)
    assert indices([next(batches), next(batches)]) == [[*range(8)], [*range(8, 16)]]
    with pytest.raises(DataError, match="sample 20 is broken"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_it_reads_ahead_but_not_far(make_loader):
    source = Numbers()
    batches = make_loader(source).batches(0, 1000)
    next(batches)
    deadline = time.monotonic() + 10
    while len(source.reads) < 3 * BATCH and time.monotonic() < deadline:
        time.sleep(0.01)
    batches.close()
    assert len(source.reads) == 3 * BATCH


def test_closing_early_ends_the_threads_and_reads_no_further(make_loader):
    before = threading.active_count()
    source = Numbers(delay=0.5)
    batches = make_loader(source, threads=2).batches(0, 1000)
    next(batches)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 4  # what is queued would take 6 more
    assert threading.active_count() == before
    assert len(source.reads) < 3 * BATCH


class Damaged(Numbers):
    """Every fifth number cannot be read; 1 is no image, 2 says nothing."""

    def __getitem__(self, index):
        if index % 5 == 0:
            raise InvalidSample("missing", self.describe(index), "no such number")
        sample = super().__getitem__(index)
        if index == 1:
            return Sample(b"<html>", sample.segments)
        return Sample(sample.image, (Segment("", True),)) if index == 2 else sample


BAD = {*range(0, SIZE, 5), 1, 2}


def test_a_bad_sample_keeps_its_place_without_weight(make_loader, tokenizer):
    whole = indices(make_loader(Numbers()).batches(0, 5))
    loader = make_loader(Damaged())
    for batch, wanted in zip(loader.batches(0, 5), whole, strict=True):
        for row, index in enumerate(wanted):
            image, tokens = np.asarray(batch.image[row]), np.asarray(batch.tokens[row])
            if index in BAD:
                assert not image.any() and (tokens == tokenizer.pad_id).all()
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
