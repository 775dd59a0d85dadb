"""Keys that nobody has, and a check that none of them is written anywhere."""

from __future__ import annotations

from pathlib import Path

FAKE = {
    "OPENAI_API_KEY": "fake-openai-7f3a91c2",
    "API_KEY": "fake-api-55d0e8b1",
    "HF_TOKEN": "fake-hub-0c4b7a6e",
}
"""Of no known form: what is recognised, is by its value."""


def clean_of_keys(*texts: str | Path) -> None:
    """No text and no file of a folder holds one of the keys."""
    contents = []
    for text in texts:
        if isinstance(text, Path):
            contents += [path.read_bytes() for path in text.rglob("*") if path.is_file()]
        else:
            contents.append(text.encode())
    for key in FAKE.values():
        assert not any(key.encode() in content for content in contents), key
