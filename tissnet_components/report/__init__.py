"""Tables and figures of finished runs."""

import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file so that it appears under its name only when it is complete; makes the folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content; nothing without the file."""
    path = Path(path)
    return _digest(path, path.stat().st_mtime_ns) if path.is_file() else ""


@cache
def _digest(path: Path, modified_ns: int) -> str:
    """Once for each content: a study asks for the same weights again and again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def slug(name: str) -> str:
    """A row's name as that of its folder and weights."""
    return re.sub(r"[^\w.+-]+", "_", str(name)).strip("_.")
