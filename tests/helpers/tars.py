"""Tars in the layout of WebDataset."""

import io
import json
import tarfile


def write_tar(path, members: dict, mode="w", **options):
    """Writes files, texts and JSON values by name; returns the path of the tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as tar:
        for name, content in members.items():
            if not isinstance(content, bytes):
                text = content if isinstance(content, str) else json.dumps(content)
                content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
