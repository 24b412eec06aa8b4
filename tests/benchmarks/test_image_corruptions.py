"""The contract of every image corruption, and what is particular to some."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.corruptions import (
    IMAGE_CORRUPTIONS,
    STYLES,
    TEXT_CORRUPTIONS,
    VIDEO_CORRUPTIONS,
    Shift,
    Style,
    UnknownShift,
    corrupt_image,
    sheet,
)
from benchmarks.corruptions import constants as c
from benchmarks.corruptions.filters import area_resize, gaussian_blur, line
from benchmarks.corruptions.image import plasma
from benchmarks.corruptions.warps import _scan
from benchmarks.corruptions.weather import frost_texture
from demo.scenes import render, scenes
from tests.conftest import shared_folder

NAMES = list(IMAGE_CORRUPTIONS)
NOT_FURTHER = {
    ("glass_blur", 3): "fewer iterations of a longer reach",
    ("snow", 2): "many small flakes become fewer large ones, while the whitening stays",
    ("frost", 3): "less of the picture below as much ice",
    ("fog", 3): "the same strength with a finer cloud",
    ("fog", 4): "mm_robustness: a corner of a large cloud is darker or lighter by chance",
    ("elastic_transform", 2): "bends of the whole picture become ripples",
}
"""Steps from a severity to the next that the published constants do not make worse, and why."""


def picture(height: int = 48, width: int = 48) -> np.ndarray:
    """Waves of many lengths with a sharp square, so that blur, contrast and noise all show."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[0:height, 0:width]
    channels = np.full((height, width, 3), 110.0)
    for length in (3, 5, 9, 17, 33):
        for channel, (phase, angle) in enumerate(rng.uniform(0, 2 * np.pi, (3, 2))):
            along = rows * np.sin(angle) + columns * np.cos(angle)
            channels[:, :, channel] += 5 * length**0.5 * np.sin(2 * np.pi * along / length + phase)
    channels[height // 4 : height // 2, width // 4 : width // 2] = (230, 30, 120)
    return np.clip(channels, 0, 255).astype(np.uint8)


def corrupted(
    name: str, severity: int, seed: int = 0, image: np.ndarray | None = None, style: Style = "imagenet_c"
) -> np.ndarray:
    image = picture() if image is None else image
    return corrupt_image(image, name, severity, np.random.default_rng(seed), style=style)


def distance(name: str, severity: int, style: Style = "imagenet_c") -> float:
    """Mean over three square pictures and two seeds."""
    images = [picture(96, 96), *(np.asarray(render(scene, 96).convert("RGB")) for scene in scenes("test", 2))]
    differences = [
        np.abs(corrupted(name, severity, seed, image, style).astype(float) - image).mean()
        for image in images
        for seed in (0, 1)
    ]
    return float(np.mean(differences))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_picture(name: str, style: Style) -> None:
    assert np.array_equal(corrupted(name, 3, style=style), corrupted(name, 3, style=style))


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog"]
)
def test_another_seed_gives_another_picture(name: str) -> None:
    assert not np.array_equal(corrupted(name, 3), corrupted(name, 3, seed=1))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_any_size_keeps_its_shape_and_type(name: str, style: Style) -> None:
    """But for pixelate of mm_robustness, which exchanges height and width."""
    for size in [(1, 1), (1, 9), (7, 2), (33, 50), (300, 20)]:
        image = picture(*size)
        kept = image.copy()
        for severity in (1, 5):
            result = corrupted(name, severity, image=image, style=style)
            turned = style == "mm_robustness" and name == "pixelate"
            assert result.shape == ((size[1], size[0], 3) if turned else image.shape)
            assert result.dtype == np.uint8
        assert np.array_equal(image, kept), "the input was changed"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_a_higher_severity_is_further_from_the_picture(name: str, style: Style) -> None:
    distances = [distance(name, severity, style) for severity in range(1, 6)]
    assert min(distances) > 1
    for severity, (milder, worse) in enumerate(pairwise(distances), start=1):
        assert worse > milder or (name, severity) in NOT_FURTHER


@pytest.mark.parametrize("name", NAMES)
def test_grey_pictures_are_taken_as_three_equal_channels(name: str) -> None:
    grey = picture()[:, :, 0]
    expected = corrupted(name, 2, image=np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(corrupted(name, 2, image=grey), expected)
    assert np.array_equal(corrupted(name, 2, image=grey[:, :, None]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_black_and_white_pictures_stay_in_range(name: str) -> None:
    """Clipping happens before the conversion to uint8: a wrapped value would turn white to black."""
    white = corrupted(name, 1, image=np.full((40, 40, 3), 255, np.uint8))
    black = corrupted(name, 1, image=np.zeros((40, 40, 3), np.uint8))
    assert white.mean() > 100
    assert black.mean() < 60


def test_gaussian_noise_has_the_published_deviation() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupted("gaussian_noise", 1, image=grey).astype(float) / 255 - 128 / 255
    assert abs(noise.std() - 0.08) < 0.002
    assert abs(noise.mean()) < 0.002


def test_impulse_noise_sets_the_published_share_half_to_black_and_half_to_white() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupted("impulse_noise", 5, image=grey)
    assert abs((noisy == 0).mean() - 0.135) < 0.01
    assert abs((noisy == 255).mean() - 0.135) < 0.01
    assert ((noisy == 0) | (noisy == 128) | (noisy == 255)).all()


def test_shot_noise_deviates_by_the_square_root_of_the_photons() -> None:
    """Poisson(x c) / c has the variance x / c: 0.5 / 25 at severity 2."""
    grey = np.full((200, 200, 3), 127, np.uint8)
    noise = corrupted("shot_noise", 2, image=grey).astype(float) / 255
    assert abs(noise.var() - 0.5 / 25) < 0.001


def test_contrast_shrinks_the_distance_to_the_mean_by_the_published_factor() -> None:
    image = picture().astype(float)
    mean = image.mean(axis=(0, 1))
    expected = (image - mean) * 0.4 + mean
    assert np.abs(corrupted("contrast", 1) - expected).max() <= 0.51


def test_brightness_adds_to_the_largest_channel_and_keeps_the_hue() -> None:
    """V = 100 grows by 0.2 * 255 = 51; the other channels keep their ratio to it."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[:] = (100, 50, 20)
    assert corrupted("brightness", 2, image=image)[0, 0].tolist() == [151, 76, 30]


def test_pixelate_leaves_blocks_of_equal_pixels() -> None:
    """Severity 5 keeps a quarter of each side: blocks of 4 x 4."""
    blocks = corrupted("pixelate", 5).reshape(12, 4, 12, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur"])
def test_blur_keeps_a_uniform_picture_and_its_mean(name: str) -> None:
    uniform = np.full((30, 41, 3), 90, np.uint8)
    assert np.array_equal(corrupted(name, 5, image=uniform), uniform)


def test_defocus_blur_spreads_a_point_over_a_disk_of_the_published_radius() -> None:
    """Radius 3 covers 29 cells; the softened edge adds none of weight above half a disk cell."""
    point = np.zeros((31, 31, 3), np.uint8)
    point[15, 15] = 255
    blurred = corrupted("defocus_blur", 1, image=point)[:, :, 0]
    rows, columns = np.nonzero(blurred)
    assert len(rows) == 29
    assert ((rows - 15) ** 2 + (columns - 15) ** 2).max() == 9


def test_motion_blur_smears_a_point_to_one_side() -> None:
    """A pixel takes what lies ahead of it along x, so a point appears behind itself: to its left."""
    point = np.zeros((61, 61, 3), np.uint8)
    point[30, 30] = 255
    rows, columns = np.nonzero(corrupted("motion_blur", 1, image=point)[:, :, 0])
    assert columns.max() == 30
    assert np.hypot(rows - 30, columns - 30).max() <= 20 + 2**0.5
    assert len(rows) > 5


def test_the_line_of_motion_has_imagemagicks_weights() -> None:
    """Radius 2: t = 0..4, exp(-t^2 / 2 sigma^2); at 0 degrees all in the row of the centre, to its left."""
    kernel = line(2.0, 3.0, 0.0)
    weights = np.exp(-(np.arange(5) ** 2) / 18)
    assert kernel.shape == (9, 9)
    assert np.allclose(kernel[4, :5][::-1], weights / weights.sum())
    assert kernel[4].sum() == pytest.approx(1.0)


def test_scaled_blur_is_milder_on_a_small_picture_and_the_same_on_a_large_one() -> None:
    def blurred(image: np.ndarray, *, scale: bool) -> np.ndarray:
        return corrupt_image(image, "defocus_blur", 5, np.random.default_rng(0), scale=scale)

    small, large = picture(56, 56), picture(230, 224)
    off = np.abs(blurred(small, scale=False).astype(float) - small).mean()
    on = np.abs(blurred(small, scale=True).astype(float) - small).mean()
    assert 0 < on < off
    assert np.array_equal(blurred(large, scale=True), blurred(large, scale=False))


def test_scale_changes_nothing_for_noise() -> None:
    small = picture(20, 20)
    on = corrupt_image(small, "gaussian_noise", 3, np.random.default_rng(0), scale=True)
    assert np.array_equal(on, corrupted("gaussian_noise", 3, image=small))


def test_plasma_spans_zero_to_one_and_joins_at_its_borders() -> None:
    """Wrap-around: the step over the border is no larger than the steps inside."""
    cloud = plasma(64, 2.0, np.random.default_rng(0))
    assert cloud.min() == 0.0
    assert cloud.max() == 1.0
    for axis in (0, 1):
        over_border = np.abs(cloud - np.roll(cloud, 1, axis)).take(0, axis)
        inside = np.abs(np.diff(cloud, axis=axis))
        assert over_border.mean() < 1.5 * inside.mean()


def test_plasma_midpoints_are_means_of_their_four_neighbours_when_nothing_is_drawn() -> None:
    """A decay of a million lets nothing be drawn after the first octave: later points interpolate."""
    cloud = plasma(16, 1e6, np.random.default_rng(1))
    centre = (cloud[0, 0] + cloud[0, 8] + cloud[8, 0] + cloud[8, 8]) / 4
    assert abs(cloud[4, 4] - centre) < 1e-6
    beside = (cloud[0, 0] + cloud[0, 8] + cloud[4, 4] + cloud[12, 4]) / 4
    assert abs(cloud[0, 4] - beside) < 1e-6
    below = (cloud[0, 0] + cloud[8, 0] + cloud[4, 4] + cloud[4, 12]) / 4
    assert abs(cloud[4, 0] - below) < 1e-6


def test_unknown_corruption_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'gaussian_noise'"):
        corrupted("gausian_noise", 1)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="imagenet_c or mm_robustness"):
        corrupt_image(picture(), "fog", 1, np.random.default_rng(0), style="other")  # type: ignore[arg-type]


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_outside_one_to_five_is_refused(severity: int) -> None:
    with pytest.raises(ValueError, match="severity is 1 to 5"):
        corrupted("fog", severity)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.float64),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a picture is uint8"):
        corrupted("fog", 1, image=image)


def test_shift_reads_name_and_severity() -> None:
    assert Shift.parse("gaussian_noise:3") == Shift("gaussian_noise", 3)
    assert Shift.parse("OCR:7") == Shift("OCR", 7)
    assert Shift.parse("fog") == Shift("fog", 5)
    assert Shift.parse("clean") == Shift("clean", 0)
    assert str(Shift.parse("fog:2")) == "fog:2"
    assert str(Shift.parse("clean")) == "clean"
    assert [Shift.parse(text).modality for text in ("clean", "fog", "CS")] == [None, "image", "text"]


def test_shift_reads_the_style() -> None:
    released = Shift("fog", 3, "mm_robustness")
    assert Shift.parse("mm:fog:3") == Shift.parse("mm_robustness:fog:3") == released
    assert Shift.parse("imagenet_c:fog:3") == Shift.parse("fog:3") == Shift("fog", 3)
    assert str(released) == "mm:fog:3"
    assert Shift.parse("mm:fog") == Shift("fog", 5, "mm_robustness")
    rng = np.random.default_rng
    expected = corrupted("pixelate", 5, image=picture(30, 20), style="mm_robustness")
    assert np.array_equal(Shift.parse("mm:pixelate").image(picture(30, 20), rng(0)), expected)


def test_a_sentence_has_one_severity() -> None:
    assert Shift.parse("Formal") == Shift.parse("Formal:1") == Shift("Formal", 1)
    assert Shift.parse("SR") == Shift("SR", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian_noise:5", "did you mean 'gaussian_noise'"),
        ("ocr:5", "did you mean 'OCR'"),
        ("zzzzzz", "there are clean, gaussian_noise"),
        ("fog:6", "severities 1 to 5, not '6'"),
        ("fog:", "severities 1 to 5, not ''"),
        ("fog:x", "severities 1 to 5, not 'x'"),
        ("OCR:8", "severities 1 to 7"),
        ("clean:2", "no severity"),
        ("", "there is no shift ''"),
        ("mm:OCR:5", "a style belongs to a corruption of pictures"),
        ("mm:clean", "a style belongs to"),
        ("mm:mm:fog:3", "a style belongs to"),
        ("mm:fgo:3", "did you mean 'fog'"),
        ("mm:fog:9", "severities 1 to 5, not '9'"),
        ("Formal:2", "severities 1 only, not '2'"),
    ],
)
def test_a_wrong_shift_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises(UnknownShift, match=message):
        Shift.parse(text)


def test_a_clean_shift_changes_nothing() -> None:
    shift, rng = Shift.parse("clean"), np.random.default_rng(0)
    assert np.array_equal(shift.image(picture(), rng), picture())
    assert shift.text("A dog .", rng) == "A dog ."


def test_fog_adds_the_cloud_and_keeps_the_brightest_value() -> None:
    """Grey x = 0.4 at severity 2: (0.4 + 2 p) * 0.4 / 2.4, p the top left of a 256 x 256 cloud."""
    grey = np.full((224, 200, 3), 102, np.uint8)
    cloud = plasma(256, 2.0, np.random.default_rng(9))[:224, :200]
    expected = (0.4 + 2.0 * cloud) * 0.4 / 2.4 * 255
    foggy = corrupted("fog", 2, seed=9, image=grey)
    assert np.abs(foggy - expected[:, :, None]).max() <= 0.51


def test_fog_spans_a_small_picture_as_it_does_a_large_one() -> None:
    """The cloud is as large as the picture, so light and dark both occur in it."""
    for side in (16, 64, 224):
        grey = np.full((side, side, 3), 102, np.uint8)
        spans = [np.ptp(corrupted("fog", 1, seed=seed, image=grey).astype(int)) for seed in range(5)]
        assert np.mean(spans) > 50


def test_the_fifteen_of_video_are_imagenet_c_without_speckle() -> None:
    assert len(VIDEO_CORRUPTIONS) == 15
    assert VIDEO_CORRUPTIONS[:3] == ("gaussian_noise", "shot_noise", "impulse_noise")
    assert set(NAMES) - set(VIDEO_CORRUPTIONS) == {"speckle_noise"}


@pytest.mark.parametrize("name", ["glass_blur", "elastic_transform", "frost"])
def test_every_severity_is_far_from_the_picture(name: str) -> None:
    assert all(distance(name, severity) > 5 for severity in range(1, 6))


@pytest.mark.parametrize("name", ["glass_blur", "zoom_blur", "elastic_transform"])
def test_moving_pixels_keeps_a_uniform_picture(name: str) -> None:
    uniform = np.full((30, 41, 3), 90, np.uint8)
    assert np.abs(corrupted(name, 5, image=uniform).astype(int) - uniform).max() <= 1


def test_zoom_blur_smears_the_rim_and_not_the_centre() -> None:
    checks = np.indices((81, 81)).sum(axis=0)[..., None] // 4 % 2 * np.full(3, 255)
    change = np.abs(corrupted("zoom_blur", 1, image=checks.astype(np.uint8)).astype(float) - checks)
    assert change[38:43, 38:43].mean() < 60 < 90 < change[:10, :10].mean()


def test_the_scan_of_glass_blur_is_what_a_loop_over_pixels_does() -> None:
    """Pixel by pixel: each copies what lies there at that moment, be it already replaced or not."""
    height, width, delta = 19, 23, 3
    rows, columns = np.arange(height - delta, delta, -1), np.arange(width - delta, delta, -1)
    scanned = (rows[:, None] * width + columns[None, :]).ravel()
    sources, looped = np.arange(height * width), list(range(height * width))
    for iteration in range(3):
        sources = _scan(sources, scanned, width, delta, np.random.default_rng(iteration))
        steps = np.random.default_rng(iteration).integers(-delta, delta, (2, len(scanned)))
        for place, right, down in zip(scanned, *steps, strict=True):
            looped[place] = looped[place + right + down * width]
    assert sources.tolist() == looped


def test_glass_blur_of_mm_robustness_displaces_one_row_only() -> None:
    """Severity 4 on 40 rows: row 40 - 3 = 37; without it two blurs of sigma 1.1, each cut at 4 cells."""
    image = picture(40, 40)
    twice = gaussian_blur(gaussian_blur(image / 255.0, 1.1, edges="edge"), 1.1, edges="edge") * 255
    change = np.abs(corrupted("glass_blur", 4, image=image, style="mm_robustness") - twice).max(axis=(1, 2))
    assert change[: 37 - 4].max() <= 0.51
    assert change[37] > 1


def test_zoom_blur_of_mm_robustness_goes_further_at_severity_five_only() -> None:
    same = [
        np.array_equal(corrupted("zoom_blur", s), corrupted("zoom_blur", s, style="mm_robustness"))
        for s in range(1, 6)
    ]
    assert same == [True, True, True, True, False]
    assert c.ZOOM_FACTORS_MM_ROBUSTNESS[4][-1] == pytest.approx(1.33)


def test_fog_of_mm_robustness_is_the_corner_of_a_map_of_1024() -> None:
    grey = np.full((20, 30, 3), 102, np.uint8)
    cloud = plasma(1024, 2.0, np.random.default_rng(9))[:20, :30]
    expected = (0.4 + 2.0 * cloud) * 0.4 / 2.4 * 255
    assert np.abs(corrupted("fog", 2, 9, grey, "mm_robustness") - expected[:, :, None]).max() <= 0.51


def test_frost_of_mm_robustness_has_red_and_blue_exchanged() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    blue, brown = (corrupted("frost", 5, 2, black, style).mean(axis=(0, 1)) for style in STYLES)
    assert blue[0] < blue[2]
    assert brown[0] > brown[2]


def test_snow_of_mm_robustness_weighs_blue_as_red() -> None:
    """max(x, 1.5 grey + 0.5) of a pure blue: grey is 0.114 there, and 0.299 with the channels exchanged."""
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 2] = 255
    usual, exchanged = (corrupted("snow", 1, 4, blue, style).astype(float)[..., 0] for style in STYLES)
    visible = exchanged < 254
    assert np.abs((exchanged - usual)[visible] - 0.2 * 1.5 * (0.299 - 0.114) * 255).max() <= 1.01


def test_jpeg_of_mm_robustness_encodes_the_channels_in_reverse() -> None:
    image = picture()
    reverse = corrupted("jpeg_compression", 3, image=np.ascontiguousarray(image[..., ::-1]))[..., ::-1]
    assert np.array_equal(corrupted("jpeg_compression", 3, image=image, style="mm_robustness"), reverse)


@pytest.mark.parametrize("name", ["gaussian_noise", "defocus_blur", "motion_blur", "brightness", "contrast"])
def test_the_styles_agree_where_the_releases_do(name: str) -> None:
    assert np.array_equal(corrupted(name, 4), corrupted(name, 4, style="mm_robustness"))


def test_resizing_by_area_means_what_each_new_pixel_covers() -> None:
    """Six values to four: each new one covers 1.5 old ones. Down to one: the mean."""
    x = np.arange(6.0).reshape(1, 6, 1)
    expected = [(0 + 0.5 * 1) / 1.5, (0.5 * 1 + 2) / 1.5, (3 + 0.5 * 4) / 1.5, (0.5 * 4 + 5) / 1.5]
    assert np.allclose(area_resize(x, 1, 4)[0, :, 0], expected)
    assert np.allclose(area_resize(x, 2, 1), 2.5)


@pytest.mark.parametrize("sigma", [2.0, 9.0, 170.8])
def test_a_gaussian_is_the_same_tap_by_tap_and_as_a_matrix(sigma: float) -> None:
    """Written out: every reflection of the line summed by its weight; 7 to 683 taps on 11 values."""
    x = np.random.default_rng(0).random((11, 1))
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    line_of = np.concatenate([x[:, 0], x[::-1, 0]])
    expected = [(weights * line_of[(offsets + place) % 22]).sum() / weights.sum() for place in range(11)]
    assert np.allclose(gaussian_blur(x, sigma)[:, 0], expected)


def test_the_constants_are_the_collected_ones() -> None:
    path = shared_folder("reference", "corruption_constants.json")
    image = json.loads(path.read_text(encoding="utf-8"))["image"]
    ours = {
        "gaussian_noise": {"sigma": c.GAUSSIAN_SIGMA},
        "shot_noise": {"photons": c.SHOT_PHOTONS},
        "impulse_noise": {"amount": c.IMPULSE_AMOUNT},
        "speckle_noise": {"sigma": c.SPECKLE_SIGMA},
        "defocus_blur": {"radius": c.DEFOCUS_RADIUS, "alias_sigma": c.DEFOCUS_ALIAS_SIGMA},
        "glass_blur": {
            "sigma": c.GLASS_SIGMA,
            "max_delta": c.GLASS_MAX_DELTA,
            "iterations": c.GLASS_ITERATIONS,
        },
        "motion_blur": {
            "radius": c.MOTION_RADIUS,
            "sigma": c.MOTION_SIGMA,
            "angle_uniform": c.MOTION_ANGLE_DEGREES,
        },
        "zoom_blur": {
            "num_factors": [len(factors) for factors in c.ZOOM_FACTORS],
            "num_factors_MM_Robustness": [len(factors) for factors in c.ZOOM_FACTORS_MM_ROBUSTNESS],
        },
        "snow": {
            "loc": c.SNOW_LOC,
            "scale": c.SNOW_SCALE,
            "zoom": c.SNOW_ZOOM,
            "threshold": c.SNOW_THRESHOLD,
            "mb_radius": c.SNOW_MOTION_RADIUS,
            "mb_sigma": c.SNOW_MOTION_SIGMA,
            "mix": c.SNOW_MIX,
            "angle_uniform": c.SNOW_ANGLE_DEGREES,
        },
        "frost": {"image_weight": c.FROST_PICTURE_WEIGHT, "frost_weight": c.FROST_WEIGHT},
        "fog": {"strength": c.FOG_STRENGTH, "wibble_decay": c.FOG_WIBBLE_DECAY},
        "brightness": {"add_to_V": c.BRIGHTNESS_ADDED},
        "contrast": {"factor": c.CONTRAST_FACTOR},
        "elastic_transform": {
            "alpha": c.ELASTIC_ALPHA,
            "sigma": c.ELASTIC_SIGMA,
            "affine": c.ELASTIC_AFFINE,
        },
        "pixelate": {"factor": c.PIXELATE_FACTOR},
        "jpeg_compression": {"quality": c.JPEG_QUALITY},
    }
    assert set(ours) == set(image)
    for name, constants in ours.items():
        for constant, values in constants.items():
            assert list(values) == pytest.approx(image[name][constant]), (name, constant)


def test_glass_blur_moves_no_value_further_than_its_reach() -> None:
    """Severity 1: two copies of at most one cell and two blurs cut at 3 cells."""
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    far = np.abs(np.argwhere(corrupted("glass_blur", 1, image=point)[..., 0] > 8) - 20).max()
    assert far <= 6


def test_snow_whitens_and_falls_differently_by_seed() -> None:
    dark = np.full((64, 64, 3), 40, np.uint8)
    first, second = (corrupted("snow", 3, seed, dark) for seed in (0, 1))
    assert first.mean() > dark.mean() + 20
    assert not np.array_equal(first, second)


def test_ice_is_as_bright_in_a_small_picture_as_in_a_large_one() -> None:
    """Means of the five textures; the cloud that thins them out differs by size, so they are not equal."""
    means = [np.mean([frost_texture(number, size).mean() for number in range(5)]) for size in (64, 512)]
    assert all(0.3 < mean < 0.5 for mean in means)


def test_frost_lets_the_published_share_of_the_picture_through() -> None:
    """Severity 5 is 0.6 x + 0.75 ice: two pictures under the same ice differ by 0.6 of their difference."""
    dark, darker = (np.full((64, 64, 3), value, np.uint8) for value in (60, 10))
    first, second = (corrupted("frost", 5, 3, image).astype(float) for image in (dark, darker))
    unclipped = first < 254
    assert np.abs((first - second)[unclipped] - 30).max() <= 1
    assert first.std() > 15


def test_the_contact_sheet_has_a_row_for_each_and_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    sheet.main([str(tmp_path / "out.png"), str(tmp_path / "in.png"), "--side", "18"])
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (
            sheet.LABEL_WIDTH + 7 * (12 + sheet.GAP),
            sheet.HEAD_HEIGHT + 16 * (18 + sheet.GAP),
        )
    assert (Path(__file__).parents[2] / "docs" / "corruptions.png").stat().st_size < 400_000


def test_the_document_names_every_corruption_and_its_example_runs() -> None:
    document = (Path(__file__).parents[2] / "docs" / "corruptions.md").read_text(encoding="utf-8")
    assert not [name for name in (*IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS) if f"`{name}`" not in document]
    names: dict[str, np.ndarray] = {}
    exec(document.partition("```python\n")[2].partition("```")[0], names)
    assert np.array_equal(names["foggy"], names["same"])
