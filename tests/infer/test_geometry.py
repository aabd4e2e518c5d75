"""From an image's own matrix to a model's square and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import smooth

from pacs_node.errors import Refused
from pacs_node.infer.geometry import Frame, check_image, resize

SIDES = st.integers(64, 900)


@given(SIDES, SIDES, st.sampled_from([64, 96, 256]))
@settings(max_examples=25, deadline=None)
def test_the_way_there_and_back_keeps_what_is_smooth(rows: int, columns: int, size: int) -> None:
    image = smooth(rows, columns)
    frame = Frame(rows, columns, size)
    square = frame.to_square(image)
    assert square.shape == (size, size)
    back = frame.to_native(square)
    assert back.shape == image.shape
    assert back.dtype == square.dtype == np.float32
    # One model pixel is at most 0.55 of the image's range / pixels along a side; linear resampling stays
    # within it.
    pixel = 0.35 / frame.box[2] + 0.25 / frame.box[3]
    assert np.abs(back - image).max() <= pixel


@given(SIDES, SIDES)
@settings(max_examples=25, deadline=None)
def test_the_box_is_centred_and_keeps_proportions(rows: int, columns: int) -> None:
    top, left, height, width = Frame(rows, columns, 256).box
    assert max(height, width) == 256
    assert abs(2 * top + height - 256) <= 1
    assert abs(2 * left + width - 256) <= 1
    # Rounded to whole pixels, so within half a pixel of the true proportion.
    assert abs(height * max(rows, columns) - 256 * rows) <= max(rows, columns) / 2
    assert abs(width * max(rows, columns) - 256 * columns) <= max(rows, columns) / 2


def test_the_filling_repeats_the_edge() -> None:
    image = smooth(128, 64)
    square = Frame(128, 64, 128).to_square(image)
    np.testing.assert_array_equal(square[:, 32:96], image)
    np.testing.assert_array_equal(square[:, :32], np.repeat(image[:, :1], 32, axis=1))
    np.testing.assert_array_equal(square[:, 96:], np.repeat(image[:, -1:], 32, axis=1))


def test_shrinking_averages_and_does_not_alias() -> None:
    noise = np.random.default_rng(0).random((960, 960), dtype=np.float32)
    square = Frame(960, 960, 96).to_square(noise)
    blocks = noise.reshape(96, 10, 96, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(square, blocks, atol=1e-5)


def test_equal_sizes_are_the_identity() -> None:
    image = smooth(256, 256)
    frame = Frame(256, 256, 256)
    np.testing.assert_array_equal(frame.to_native(frame.to_square(image)), image)
    np.testing.assert_array_equal(resize(image, 256, 256), image)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((100, 100), np.float64), "float64"),
        (np.zeros((100, 100), np.uint16), "uint16"),
        (np.zeros((100, 100, 3), np.float32), r"\(100, 100, 3\)"),
        (np.zeros(100, np.float32), r"\(100,\)"),
        ([[0.0]], "list"),
        (np.linspace(0, 2, 10_000, dtype=np.float32).reshape(100, 100), r"\[0, 2\]"),
        (np.linspace(-1, 1, 10_000, dtype=np.float32).reshape(100, 100), r"\[-1, 1\]"),
        (np.full((100, 100), np.nan, np.float32), "nan"),
    ],
)
def test_an_array_that_is_no_image_is_a_callers_error(array: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_image(array)  # type: ignore[arg-type]


def test_one_pixel_that_is_not_finite() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        image = smooth(100, 100)
        image[3, 4] = bad
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            check_image(image)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_image_without_contrast_is_refused(value: float) -> None:
    with pytest.raises(Refused, match="All pixels of the image are alike") as refused:
        check_image(np.full((100, 100), value, np.float32))
    assert refused.value.code == "constant-image"


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (100, 63), (64, 300), (2000, 400), (0, 0)])
def test_an_image_of_no_radiographs_size_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(Refused) as refused:
        check_image(np.zeros(shape, np.float32))
    assert refused.value.code == "image-size"
