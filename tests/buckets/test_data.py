"""Datasets and tokenizers in buckets."""

import importlib.util

import pytest
from helpers.llava_sets import encoded, photograph, record, write_parquet, write_set
from helpers.tars import write_tar

from hive_jax import prepare_data
from hive_jax.buckets import as_path, filesystem
from hive_jax.config import DataConfig
from hive_jax.data.sources.registry import checked_sources, make_source
from hive_jax.data.tokenizer import BUILTIN, keep_tokenizer, load_tokenizer
from hive_jax.errors import ConfigError


def test_tokenizers(folder):
    keep_tokenizer(BUILTIN, as_path(folder) / "tokenizer")
    kept = load_tokenizer(f"{folder}/tokenizer")
    assert kept.fingerprint == load_tokenizer(BUILTIN).fingerprint


@pytest.fixture(scope="module")
def sets(servers, tmp_path_factory):
    """The same sets in a local folder and in a bucket: both, and the sources in it."""
    root, url = tmp_path_factory.mktemp("sets"), f"{servers['s3']}/sets"
    files = {record(n)["image"]: encoded(photograph(n)) for n in range(9)}
    records = [record(n) for n in range(9)]
    sources = list(write_set(root, files, records).values())
    if importlib.util.find_spec("pyarrow"):
        sources.append(write_parquet(root, files, records))
    texts = {f"{n}.txt": f"caption {n}" for n in range(9)}
    images = {f"{n}.jpg": encoded(photograph(n)) for n in range(9)}
    write_tar(root / "tars" / "0.tar", dict(sorted((images | texts).items())))
    sources += [f"wds:{root}/tars", f"folder:{root}/images"]
    rows = [f"{one['image']},caption {one['id']}" for one in records]
    (root / "t.csv").write_text("\n".join(["image,text", *rows]))
    columns = f"images={root}/images.zip,image=image,text=text"
    sources.append(f"table:{root}/t.csv,{columns}")
    options = ["--out", f"{root}/prepared", "--from", sources[0]]
    assert prepare_data.main(options) == 0
    sources += [f"prepared:{root}/prepared", f"2*{sources[0]} + 1*wds:{root}/tars"]
    filesystem(url).put(str(root), url, recursive=True)
    return str(root), url, sources


def test_data_is_the_same_as_in_a_folder(sets):
    root, url, sources = sets
    for source in sources:
        local, remote = (
            make_source(
                DataConfig(source.replace(root, place), validation_size=2),
                image_size=16,
                with_image=True,
                split="train",
            )
            for place in (root, url)
        )
        assert local.fingerprint == remote.fingerprint
        assert [local[n] for n in range(7)] == [remote[n] for n in range(7)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:x,dir={0}", "dir is '{0}'; expected a local path"),
        ("wds:{0}/{{0..3}}.tar", "expected no pattern in a bucket, but the folder"),
        ("wds:{0}/*.tar", "expected no pattern in a bucket, but the folder"),
        (
            "{0}/a.json",
            "Write the format of a path before it, such as folder:{0}/a.json",
        ),
    ],
)
def test_sources_that_need_local_files_are_refused(servers, source, message):
    url = servers["s3"]
    with pytest.raises(ConfigError) as error:
        checked_sources(source.format(url))
    assert message.format(url) in str(error.value)
