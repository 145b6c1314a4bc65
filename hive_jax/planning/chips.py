"""The chips a run can be planned for: data sheets, and the links of a slice.

Peak, memory and its bandwidth are those of docs.cloud.google.com/tpu/docs/ (v4, v5e,
v5p, v6e); links and wraparound those of "How to Scale Your Model", part 2
(jax-ml.github.io/scaling-book/tpus). What a program may use of the memory is what
libtpu 0.0.52 refuses to exceed.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; None is a figure that is not known.

    Attributes:
      name: as topologies are called, "v5e".
      peak_flops: bfloat16, a second.
      hbm_bytes: on the data sheet.
      usable_bytes: of these, for a program.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second over one ICI link in one direction.
      axes: dimensions of the torus; a chip has a link both ways along each.
      wrap: an axis closes to a ring where its size is a multiple of this.
      largest: chips along an axis, at most.
      config: libtpu's name of the chip with all its cores as one device, where it has
        another default.
    """

    name: str
    peak_flops: float | None = None
    hbm_bytes: float | None = None
    usable_bytes: float | None = None
    hbm_bandwidth: float | None = None
    link_bandwidth: float | None = None
    axes: int = 0
    wrap: int = 0
    largest: int = 0
    config: str = ""

    def links(self, shape: tuple[int, ...]) -> int:
        """Links of the chip with the fewest of them, in a slice of this shape.

        v5e 4x4: 2, a corner's. v5e 16x16: 4, for both axes are rings.
        """
        return sum(
            0 if size == 1 else 2 if size % self.wrap == 0 else 1 for size in shape
        )

    def ici_bandwidth(self, shape: tuple[int, ...]) -> float | None:
        """Bytes a second that every chip of a slice can receive at once; None where
        that is not known, or the chip is alone."""
        if self.link_bandwidth is None or not self.links(shape):
            return None
        return self.link_bandwidth * self.links(shape)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            peak_flops=275e12,
            hbm_bytes=32 * GIB,
            usable_bytes=30.75 * GIB,
            hbm_bandwidth=1200e9,
            link_bandwidth=45e9,
            axes=3,
            wrap=4,
            largest=16,
            config="megacore",
        ),
        Chip(
            "v5e",
            peak_flops=197e12,
            hbm_bytes=16 * GIB,
            usable_bytes=15.75 * GIB,
            hbm_bandwidth=819e9,
            link_bandwidth=45e9,
            axes=2,
            wrap=16,
            largest=16,
        ),
        Chip(
            "v5p",
            peak_flops=459e12,
            hbm_bytes=95 * GIB,
            usable_bytes=95 * GIB,
            hbm_bandwidth=2765e9,
            link_bandwidth=90e9,
            axes=3,
            wrap=4,
            largest=28,
        ),
        Chip(
            "v6e",
            peak_flops=918e12,
            hbm_bytes=32 * GIB,
            usable_bytes=31.24 * GIB,
            hbm_bandwidth=1638e9,
            link_bandwidth=90e9,
            axes=2,
            wrap=16,
            largest=16,
        ),
    )
}
