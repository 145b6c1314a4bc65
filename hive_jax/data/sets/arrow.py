"""Arrow's arrays as Python values."""

from hive_jax.data.sets.text import Broken


def as_python(array) -> list:
    """The values of an Arrow array; equal texts of a dictionary are one object."""
    import pyarrow

    if isinstance(array, pyarrow.ChunkedArray):
        return [value for chunk in array.chunks for value in as_python(chunk)]
    if isinstance(array, pyarrow.DictionaryArray):
        known = as_python(array.dictionary)
        return [None if i is None else known[i] for i in array.indices.to_pylist()]
    if isinstance(array, pyarrow.StructArray):
        names = [field.name for field in array.type]
        parts = [as_python(part) for part in array.flatten()]
        rows = zip(array.is_valid().to_pylist(), *parts, strict=True)
        return [dict(zip(names, row, strict=True)) if v else None for v, *row in rows]
    if isinstance(array, (pyarrow.ListArray, pyarrow.LargeListArray)):
        inside, ends = as_python(array.values), array.offsets.to_pylist()
        spans = zip(array.is_valid().to_pylist(), ends, ends[1:], strict=False)
        return [inside[start:end] if v else None for v, start, end in spans]
    return [_scalar(value) for value in array]


def _scalar(value):
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Broken(f"a {value.type} that cannot be read: {error}")


def length(value) -> int:
    """Characters of the texts in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sum(map(length, value))
    return len(value) if isinstance(value, (str, bytes)) else 0
