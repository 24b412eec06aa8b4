"""The contract of every image corruption, and what is particular to some."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.corruptions import IMAGE_CORRUPTIONS, VIDEO_CORRUPTIONS, Shift, UnknownShift, corrupt_image
from benchmarks.corruptions.image import plasma

NAMES = list(IMAGE_CORRUPTIONS)
# Fog's higher severities change the cloud's shape more than its strength; pixelate's blocks may fall in with
# the picture's own waves; glass blur trades iterations for reach, elastic transform bends for ripples, frost
# the picture for ice. So their distance need not grow at every single severity.
NOT_MONOTONE = {"fog", "pixelate", "glass_blur", "elastic_transform", "frost"}


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


def corrupted(name: str, severity: int, seed: int = 0, image: np.ndarray | None = None) -> np.ndarray:
    image = picture() if image is None else image
    return corrupt_image(image, name, severity, np.random.default_rng(seed))


def distance(name: str, severity: int) -> float:
    difference = corrupted(name, severity).astype(float) - picture()
    return float(np.abs(difference).mean())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_picture(name: str) -> None:
    assert np.array_equal(corrupted(name, 3), corrupted(name, 3))


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog"]
)
def test_another_seed_gives_another_picture(name: str) -> None:
    assert not np.array_equal(corrupted(name, 3), corrupted(name, 3, seed=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (33, 50), (300, 20)])
def test_any_size_keeps_its_shape_and_type(name: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    kept = image.copy()
    for severity in (1, 5):
        result = corrupted(name, severity, image=image)
        assert result.shape == image.shape
        assert result.dtype == np.uint8
    assert np.array_equal(image, kept), "the input was changed"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_MONOTONE])
def test_a_higher_severity_is_further_from_the_picture(name: str) -> None:
    distances = [distance(name, severity) for severity in range(1, 6)]
    assert distances == sorted(distances)
    assert distances[0] > 0.5


def test_pixelate_at_its_worst_is_further_from_the_picture_than_at_its_mildest() -> None:
    assert distance("pixelate", 5) > 1.5 * distance("pixelate", 1) > 0


def test_fog_is_never_mild() -> None:
    assert all(distance("fog", severity) > 20 for severity in range(1, 6))


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


def test_motion_blur_spreads_a_point_within_its_radius() -> None:
    point = np.zeros((61, 61, 3), np.uint8)
    point[30, 30] = 255
    rows, columns = np.nonzero(corrupted("motion_blur", 1, image=point)[:, :, 0])
    assert np.hypot(rows - 30, columns - 30).max() <= 10 + 2**0.5
    assert len(rows) > 5


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


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_outside_one_to_five_is_refused(severity: int) -> None:
    with pytest.raises(ValueError, match="severity is 1 to 5"):
        corrupted("fog", severity)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
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


def test_frost_lets_the_published_share_of_the_picture_through() -> None:
    """Severity 5 is 0.6 x + 0.75 ice: two pictures under the same ice differ by 0.6 of their difference."""
    dark, darker = (np.full((64, 64, 3), value, np.uint8) for value in (60, 10))
    first, second = (corrupted("frost", 5, 3, image).astype(float) for image in (dark, darker))
    unclipped = first < 254
    assert np.abs((first - second)[unclipped] - 30).max() <= 1
    assert first.std() > 15
