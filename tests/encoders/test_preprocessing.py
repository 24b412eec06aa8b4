"""Pictures of every kind, broken ones included, and the same pixels as Transformers' processors."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.base import BadImage, ImageTooLarge
from encoders.preprocessing import ImageSpec, clean_caption, open_image, pixels


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def photo(width: int = 37, height: int = 23, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_accepted_formats_are_read(kind: str) -> None:
    image = open_image(encoded(photo(), kind))
    assert image.mode == "RGB"
    assert image.size == (37, 23)


def test_lossless_picture_keeps_its_values() -> None:
    assert np.array_equal(np.asarray(open_image(encoded(photo()))), np.asarray(photo()))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 40, b"GIF89a"]
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        open_image(data)


def test_format_outside_the_list_is_refused() -> None:
    with pytest.raises(BadImage, match="accepted formats"):
        open_image(encoded(photo(), "PPM"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_truncated_picture_is_refused(kind: str) -> None:
    data = encoded(photo(200, 200), kind)
    with pytest.raises(BadImage):
        open_image(data[: len(data) // 2])


def test_corrupt_picture_is_refused() -> None:
    data = bytearray(encoded(photo(200, 200)))
    start = data.index(b"IDAT") + 4
    data[start : start + 400] = bytes(400)
    with pytest.raises(BadImage):
        open_image(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_any_damage_gives_a_picture_or_a_clear_refusal(kind: str) -> None:
    """Bytes overwritten at seeded places, most of them in the header."""
    exif = Image.Exif()
    exif[0x0112] = 3
    settings = {} if kind in ("GIF", "BMP") else {"exif": exif}
    original = encoded(photo(40, 30), kind, **settings)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(original)
        limit = min(len(data), int(generator.choice([32, 128, len(data)])))
        for place in generator.integers(0, limit, size=int(generator.integers(1, 6))):
            data[place] = int(generator.integers(0, 256))
        try:
            assert open_image(bytes(data), max_pixels=10_000_000).mode == "RGB"
        except BadImage:
            refused += 1
    assert refused > 0


def test_warning_filters_survive_decoding_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of each of these pictures; that is no error here and leaves no trace in the filters."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    picture = encoded(photo(40, 30))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(picture))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        modes = {image.mode for image in pool.map(open_image, [picture] * 200)}
    assert modes == {"RGB"}
    assert list(warnings.filters) == before


def test_too_many_bytes_are_refused() -> None:
    data = encoded(photo())
    assert open_image(data, max_bytes=len(data)).size == (37, 23)
    with pytest.raises(ImageTooLarge, match="bytes"):
        open_image(data, max_bytes=len(data) - 1)


def test_pixels_are_counted_from_the_header() -> None:
    data = encoded(photo(10, 10))
    assert open_image(data, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageTooLarge, match="10x10"):
        open_image(data, max_pixels=99)


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_bomb_is_refused_before_anything_is_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """20000 squared is beyond Pillow's warning, 60000 squared beyond its error."""

    def forbidden(*_: object) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", forbidden)
    with pytest.raises(ImageTooLarge):
        open_image(png_header(side, side))


def test_announced_pixels_that_are_absent_are_refused() -> None:
    with pytest.raises(BadImage):
        open_image(png_header(8, 8))


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(
            frames[0],
            kind,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if kind == "WEBP" else {}),
        )
        assert open_image(data).getpixel((2, 2)) == (255, 0, 0)


def test_cmyk_becomes_rgb() -> None:
    image = open_image(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", quality=100))
    red, green, blue = image.getpixel((1, 1))
    assert red > 240
    assert max(green, blue) < 20


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int, expected: int) -> None:
    values = np.full((3, 3), value, dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert open_image(encoded(Image.fromarray(values), kind)).getpixel((0, 0)) == (expected,) * 3


def test_thirty_two_bit_grey_is_scaled_by_its_range() -> None:
    low = Image.fromarray(np.array([[0, 200]], dtype=np.int32))
    high = Image.fromarray(np.array([[-5, 32896, 65535]], dtype=np.int32))
    assert [open_image(encoded(low, "TIFF")).getpixel((x, 0))[0] for x in range(2)] == [0, 200]
    assert [open_image(encoded(high, "TIFF")).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_float_grey_between_0_and_1_fills_the_range_and_nan_is_black() -> None:
    values = np.array([[0.0, 0.5, 1.0, np.nan, -3.0]], dtype=np.float32)
    image = open_image(encoded(Image.fromarray(values), "TIFF"))
    assert [image.getpixel((x, 0))[0] for x in range(5)] == [0, 128, 255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_modes_become_rgb(mode: str) -> None:
    assert open_image(encoded(photo(mode=mode))).mode == "RGB"


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    half = Image.new("LA", (2, 2), (0, 128))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    assert open_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    assert open_image(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    upright = Image.new("RGB", (20, 10), "black")
    upright.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    image = open_image(encoded(upright, "JPEG", exif=exif, quality=100))
    assert image.size == (10, 20)
    assert image.getpixel((5, 2))[0] > 240
    assert image.getpixel((5, 17))[0] < 15


def test_unreadable_metadata_does_not_cost_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Image.Image) -> Image.Image:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    assert np.array_equal(np.asarray(open_image(encoded(photo()))), np.asarray(photo()))


def test_one_pixel_is_a_picture() -> None:
    values = pixels(open_image(encoded(Image.new("RGB", (1, 1), (9, 8, 7)))), ImageSpec(height=4, width=6))
    assert values.shape == (3, 4, 6)
    assert values[:, 0, 0].tolist() == [9, 8, 7]


def processors() -> list[tuple[str, dict[str, object]]]:
    return [
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 24}}),
        ("CLIPImageProcessorPil", {"size": {"height": 24, "width": 40}, "do_center_crop": False}),
        (
            "CLIPImageProcessorPil",
            {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 20}},
        ),
        ("BlipImageProcessorPil", {"size": {"height": 48, "width": 48}}),
        ("SiglipImageProcessorPil", {"size": {"height": 32, "width": 32}, "do_rescale": True}),
        ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
        (
            "MobileNetV2ImageProcessorPil",
            {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
        ),
    ]


@pytest.mark.parametrize(("name", "settings"), processors())
@pytest.mark.parametrize("size", [(37, 23), (23, 37), (64, 64), (1, 1), (300, 7), (41, 200)])
def test_pixels_equal_those_of_transformers(
    name: str, settings: dict[str, object], size: tuple[int, int]
) -> None:
    import transformers

    from encoders.load import image_spec_of

    processor = getattr(transformers, name)(**settings)
    spec = image_spec_of(processor)
    image = photo(*size)
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    values = pixels(image, spec)
    assert values.dtype == np.uint8
    assert values.shape == expected.shape == (3, spec.height, spec.width)
    mean, std = (np.array(part).reshape(3, 1, 1) for part in (spec.mean, spec.std))
    assert np.abs((values * spec.rescale - mean) / std - expected).max() < 1e-6


@pytest.mark.parametrize("size", [(50_000, 1), (1, 50_000)])
def test_thin_picture_does_not_become_a_huge_one(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ImageSpec(height=32, width=32, resize="shortest_edge", shortest_edge=32, center_crop=True)
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], **rest: object) -> Image.Image:
        resized.append(size)
        return resize(image, size, **rest)

    monkeypatch.setattr(Image.Image, "resize", watched)

    assert pixels(Image.new("RGB", size, "red"), spec).shape == (3, 32, 32)
    assert max(map(max, resized)) < 5000


@pytest.mark.parametrize("size", [(4001, 9), (4000, 9), (9, 4001)])
def test_middle_of_a_long_picture_is_what_the_whole_would_give(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ImageSpec(height=32, width=32, resize="shortest_edge", shortest_edge=36, center_crop=True)
    image = photo(*size)
    cut = pixels(image, spec)
    monkeypatch.setattr("encoders.preprocessing._SEEN", 1000)

    np.testing.assert_array_equal(cut, pixels(image, spec))


def test_transparent_picture_stands_on_white() -> None:
    """As the processors of newer releases of Transformers do; older ones drop the transparency."""
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    expected = pixels(Image.alpha_composite(white, image).convert("RGB"), ImageSpec(height=16, width=16))
    found = pixels(open_image(encoded(image)), ImageSpec(height=16, width=16))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_spec_survives_json() -> None:
    spec = ImageSpec(
        height=32,
        width=24,
        resize="shortest_edge",
        shortest_edge=40,
        center_crop=True,
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3),
    )
    assert ImageSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "settings",
    [
        {"height": 0, "width": 4},
        {"height": 4, "width": 4, "resize": "shortest_edge"},
        {"height": 4, "width": 4, "std": (1.0, 0.0, 1.0)},
    ],
)
def test_impossible_spec_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        ImageSpec(**settings)


def test_decoding_needs_no_torch() -> None:
    code = "import sys, encoders.preprocessing; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_caption_is_cleaned_as_in_the_papers() -> None:
    assert clean_caption('  A man. "Hello", (two)\tdogs!  #tag:;~*x ') == "a man hello , two dogs tag x"
    assert clean_caption("one two three four", max_words=3) == "one two three"
    assert clean_caption("...") == ""
