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
    for text in texts:
        files = (
            [p.read_bytes() for p in text.rglob("*") if p.is_file()]
            if isinstance(text, Path)
            else [text.encode()]
        )
        assert not [key for key in FAKE.values() for content in files if key.encode() in content]
