"""Images of rows are RGB, scaled, kept once, and stay in their folder."""

from __future__ import annotations

import zipfile

import pytest
from pictures import drawing, png
from PIL import Image

from school_geometry import figures, problems
from tunebook.data import images, sources
from tunebook.data.rows import Reject, Row
from tunebook.models import image_input
from tunebook.models.image_input import BadImage
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def test_images_are_made_rgb_upright_on_white_and_never_larger():
    tall = drawing(1, (900, 300))
    assert image_input.read(png(tall), 300).size == (300, 100) and image_input.read(png(tall), 3000).size == (
        900,
        300,
    )
    lines = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    lines.paste((0, 0, 0, 255), (5, 5, 8, 8))
    found = image_input.read(png(lines))
    assert (
        found.mode == "RGB"
        and found.getpixel((0, 0)) == (255, 255, 255)
        and found.getpixel((6, 6)) == (0, 0, 0)
    )
    palette = lines.convert("P", palette=Image.Palette.ADAPTIVE)
    for image in (
        palette,
        lines.convert("LA"),
        drawing(1).convert("L"),
        drawing(1).convert("1"),
        drawing(1).convert("CMYK"),
    ):
        assert image_input.read(png(image, "TIFF")).mode == "RGB"
    turned = Image.Exif()
    turned[0x0112] = 6  # a photo taken upright
    assert image_input.read(png(drawing(1, (40, 20)), "JPEG", exif=turned)).size == (20, 40)


def test_the_same_picture_is_stored_once_whatever_its_file_and_a_blank_one_beside_it(tmp_path):
    names = {
        images.store(image_input.read(png(drawing(7), kind)), tmp_path) for kind in ("PNG", "BMP", "TIFF")
    }
    assert len(names) == 1 and sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*names, "blank-120x90.png"]
    )
    (path,) = (str(tmp_path / name) for name in names)
    other = str(tmp_path / images.store(drawing(8), tmp_path))
    blank = images.swap_images("blank", [[path]])[0][0]
    assert Image.open(blank).size == (120, 90) and Image.open(blank).getextrema() == ((255, 255),) * 3
    assert images.swap_images("swapped", [[path], [path], [other], []]) == [[other], [other], [], [path]]
    assert images.swap_images("true", [[path]]) == [[path]]


@pytest.mark.parametrize(
    ("files", "message"),
    [({}, "should hold one .jsonl file, it holds 0"), ({"a.jsonl": b"", "b.jsonl": b""}, "it holds 2")],
)
def test_a_folder_that_is_not_mm_math_is_one_line(tmp_path, files, message):
    (tmp_path / "d").mkdir()
    for name, data in files.items():
        (tmp_path / "d" / name).write_bytes(data)
    recipe = load_recipe(
        "mm-math-sample", overrides={"data.sources": [{"format": "mm_math", "path": str(tmp_path / "d")}]}
    )
    with pytest.raises(UserError, match=message):
        list(sources.read(recipe, tmp_path / "out"))


def test_no_such_data_set_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        "mm-math-sample", overrides={"data.sources": [{"format": "mm_math", "path": "nobody/nothing"}]}
    )
    with pytest.raises(UserError, match="nobody/nothing is neither a folder nor a data set of the hub"):
        list(sources.read(recipe, tmp_path / "out"))


def test_a_zip_bomb_of_names_and_a_damaged_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"a\.zip cannot be read"):
        images.finder(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("images/1.png", png(drawing(1)))
    find = images.finder(tmp_path / "b.zip")
    assert find("1.png") == find("images/1.png")
    with pytest.raises(BadImage, match=r"no '2\.png'"):
        find("2.png")


def test_an_unreadable_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(drawing(1)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadImage) as error:
        images.finder(tmp_path / "in")("1.png")
    assert error.value.reason == "image outside the folder"


def test_the_sample_asks_nothing_that_another_recipe_holds_out():
    chosen = figures._chosen(2000, 0)
    assert {p.split for p in chosen} == {"train"} and not any(
        problems.FAMILIES[p.family].held_out for p in chosen
    )


def test_conversion_streams(tmp_path):
    """No more than one chunk of rows is under way: the last row is not read before the first is out."""
    read: list[int] = []

    def rows():
        for i in range(2 * images.CHUNK):
            read.append(i)
            yield Row(str(i), "train", [{"role": "user", "content": "?"}], [], images=[png(drawing(i))])
        yield Reject("bad", "schema")

    found = images.store_all(rows(), tmp_path, 64)
    first = next(found)
    assert isinstance(first, Row) and len(read) == images.CHUNK
    assert isinstance(list(found)[-1], Reject)
