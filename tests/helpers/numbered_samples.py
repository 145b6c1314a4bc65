"""Samples that are told apart by their numbers, for tests of loaders."""

import threading
import time

import numpy as np

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.types import Sample, Segment

SIZE, BATCH = 37, 8


class Numbers:
    """Sample i says i, and its image is i all over."""

    classes = tag_names = notes = ()
    has_conversations = False
    fingerprint = ""

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


def indices(batches):
    """The sample numbers of each batch, as its images say."""
    return [np.asarray(batch.image)[:, 0, 0, 0].tolist() for batch in batches]


def order_of(batches):
    """The sample numbers one after the other."""
    return [index for batch in indices(batches) for index in batch]


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
