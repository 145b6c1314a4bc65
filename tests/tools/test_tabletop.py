"""The preview and the benchmarks of tools/tabletop.py, and arguments it refuses."""

import pytest
from PIL import Image

from tools.tabletop import main


def test_preview_is_a_png_whatever_its_suffix(tmp_path):
    out = tmp_path / "new" / "sheet"
    assert main(["preview", "--out", str(out), "--count", "2"]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 192


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["preview", "--count=0"], 64, "--count 0; expected a start of 0 to"),
        (["preview", "--start=-1"], 64, "--start is -1 and"),
        (["preview", "--start=99999999"], 64, "--start is 99999999 and"),
        (["preview", "--out=file/sheet.png"], 73, "cannot write file/sheet.png"),
        (["preview", "--out=."], 73, "cannot write ."),
        (["benchmarks", "--size=0"], 64, "image_size must be a whole number"),
        (["benchmarks", "--seed=-1"], 64, "seed must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    command, *options = arguments
    assert main([command, "--out=out", *options]) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
