"""Batches as a function of (seed, step)."""

import threading
import time

import jax
import numpy as np
import pytest
from helpers.numbered_samples import BATCH, SIZE, Damaged, Numbers, indices, order_of

from hive_jax.config import MeshConfig
from hive_jax.data.batch import Batch
from hive_jax.data.image_io import encode_png
from hive_jax.data.sample_encoding import encode_sample
from hive_jax.data.sampler import LengthBucketSampler, count_all_tokens
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import DataError
from hive_jax.training.sharding import batch_sharding, make_mesh
from tools.fault_suite.order import RowsOfOneHost, hosts_in_one_process


def test_a_batch_holds_the_samples_side_by_side(make_loader, tabletop):
    loader = make_loader(Numbers())
    (batch,) = loader.batches(0, 1)
    assert jax.eval_shape(lambda: batch) == Batch.spec(BATCH, 6, 16)
    for row, index in enumerate(indices([batch])[0]):
        image = np.asarray(batch.image[row])
        assert (image == index).all()
        assert tabletop.decode(np.asarray(batch.tokens[row])) == f" {index}"
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


def test_a_process_reads_the_rows_of_its_devices(make_loader):
    every = indices(make_loader(Numbers()).batches(0, 3))
    halves = []
    for sharding in (RowsOfOneHost((0, 2), (2, 4)), RowsOfOneHost((4, 6), (6, 8))):
        source = Numbers()
        with hosts_in_one_process():
            halves.append(indices(make_loader(source, sharding).batches(0, 3)))
        assert len(source.reads) == 3 * BATCH // 2
    assert [first + second for first, second in zip(*halves, strict=True)] == every


def by_length(tabletop, buckets=(3,), batch_size=BATCH):
    tokens = count_all_tokens(Numbers(), tabletop, 6, 1, lambda count: None)
    return LengthBucketSampler(tokens, 0, batch_size=batch_size, buckets=buckets)


def test_buckets_cut_padding_and_nothing_else(make_loader, tabletop):
    source, order = Numbers(), by_length(tabletop)
    lengths = set()
    for batch in make_loader(source, sampler=order).batches(0, 2 * SIZE):
        length = batch.tokens.shape[1]
        assert jax.eval_shape(lambda b=batch: b) == Batch.spec(BATCH, length, 16)
        lengths.add(length)
        for row, index in enumerate(indices([batch])[0]):
            wanted = encode_sample(source[index], tabletop, 6)
            assert (wanted["tokens"][length:] == tabletop.pad_id).all()
            assert not wanted["target"][length:].any()
            for key, values in wanted.items():
                got = np.asarray(getattr(batch, key)[row])
                np.testing.assert_array_equal(got, values[:length])
    assert lengths == {3, 6}


def test_a_bad_sample_among_short_ones_is_as_short(make_loader, tabletop):
    order = by_length(tabletop)
    for batch in make_loader(Damaged(), sampler=order).batches(0, SIZE):
        assert batch.tokens.shape == batch.target.shape


def test_parts_of_a_batch_have_one_length(make_loader, tabletop):
    order = by_length(tabletop, batch_size=2 * BATCH)
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
