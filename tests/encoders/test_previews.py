from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from encoders.preprocessing import open_image
from encoders.previews import make_preview


def opened(preview: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(preview))
    assert picture.format == "WEBP"
    picture.load()
    return picture


def scene(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    return picture


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((1000, 500), 256, (256, 128)),
        ((500, 1000), 256, (128, 256)),
        ((256, 256), 256, (256, 256)),
        ((40, 30), 256, (40, 30)),
        ((1, 1), 1024, (1, 1)),
        ((5000, 2), 256, (256, 1)),
    ],
)
def test_longest_side_is_bounded_and_nothing_is_enlarged(
    size: tuple[int, int], longest: int, expected: tuple[int, int]
) -> None:
    assert opened(make_preview(scene(*size), longest)).size == expected


def test_preview_looks_like_the_picture() -> None:
    values = np.asarray(opened(make_preview(scene(600, 400), 120)), dtype=int)
    expected = np.asarray(scene(120, 80), dtype=int)
    assert np.abs(values - expected)[:, :50].mean() < 5
    assert np.abs(values - expected)[:, 70:].mean() < 5


@pytest.mark.parametrize("size", [(300, 200), (30, 20)])
def test_no_metadata_is_kept(size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    scene(*size).save(buffer, "JPEG", exif=exif, icc_profile=b"profile" * 50, comment=b"a comment")
    picture = open_image(buffer.getvalue())
    assert "icc_profile" in picture.info
    preview = make_preview(picture, 100)
    shown = opened(preview)
    assert not {"exif", "icc_profile", "xmp", "comment"} & shown.info.keys()
    assert not shown.getexif()
    assert not any(mark in preview for mark in (b"EXIF", b"ICCP", b"XMP ", b"description"))
    assert "icc_profile" in picture.info, "the picture itself is left as it is"


def test_preview_is_upright_and_transparency_lies_over_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    scene(80, 40).save(buffer, "JPEG", exif=exif, quality=95)
    turned = opened(make_preview(open_image(buffer.getvalue()), 256))
    assert turned.size == (40, 80)
    red, _, blue = turned.getpixel((20, 5))
    assert red > 200 > 60 > blue, "what was left is above"

    buffer = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(buffer, "PNG")
    clear = opened(make_preview(open_image(buffer.getvalue()), 256))
    assert min(clear.getpixel((10, 10))) > 250
