"""Control images, from pictures and from estimates."""

import inspect
import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from overpaint.errors import PictureError, RequestError
from overpaint.imaging import codec, hints
from overpaint.imaging.hints import drawing
from overpaint.registry import HINT_OPTION_RANGES, HINTS
from overpaint.request.parts import Control

SIZE = (96, 64)


def square() -> Image.Image:
    picture = Image.new("RGB", SIZE, (230, 230, 240))
    ImageDraw.Draw(picture).rectangle((33, 17, 64, 48), fill=(200, 30, 30))
    return picture


def gray(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("L"), np.float64)


@pytest.mark.parametrize("kind", sorted(hints.HINT_FROM_PICTURE))
def test_hint_of_each_kind_is_deterministic_and_has_the_picture_size(kind: str) -> None:
    assert kind in HINTS
    hint = hints.make_hint(kind, square())
    assert (hint.size, hint.mode) == (SIZE, "RGB")
    assert hint.tobytes() == hints.make_hint(kind, square()).tobytes()


@pytest.mark.parametrize("kind", ["canny", "lineart", "scribble", "softedge"])
def test_line_hints_draw_the_edges(kind: str) -> None:
    hint = gray(hints.make_hint(kind, square()))
    edge = np.zeros(hint.shape, bool)
    edge[10:54, 26:70] = True
    edge[24:40, 40:56] = False
    assert hint[edge].max() > 150
    assert hint[~edge].max() < 60
    assert hint[28:36, 30:37].max() > 150  # the left side


def test_canny_thresholds_decide_which_edges_are_drawn() -> None:
    faint = Image.new("RGB", SIZE, (120, 120, 120))
    ImageDraw.Draw(faint).rectangle((32, 16, 63, 47), fill=(135, 135, 135))
    assert gray(hints.make_hint("canny", faint)).max() == 0
    assert gray(hints.make_hint("canny", faint, {"low": 10, "high": 30})).max() == 255


@pytest.mark.parametrize("kind", ["tile", "blur", "palette"])
def test_coarse_hints_keep_the_colors(kind: str) -> None:
    source, hint = (np.asarray(p, np.float64) for p in (square(), hints.make_hint(kind, square())))
    assert np.abs(source.mean((0, 1)) - hint.mean((0, 1))).max() < 4
    assert np.abs(source - hint).max() > 20


def test_shuffle_depends_on_its_seed_and_adds_no_colors() -> None:
    hint = hints.make_hint("shuffle", square(), {"seed": 3})
    assert hint.tobytes() != hints.make_hint("shuffle", square(), {"seed": 4}).tobytes()
    low, high = np.asarray(square()).min((0, 1)), np.asarray(square()).max((0, 1))
    assert (np.asarray(hint) >= low).all()
    assert (np.asarray(hint) <= high).all()


def test_normal_hint_of_a_ramp_faces_the_far_side() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1)))
    red, green, blue = np.asarray(hints.make_hint("normal", ramp))[32, 48]
    assert red < 100  # it gets nearer to the right, so that it faces left
    assert abs(int(green) - 128) < 4
    assert blue > 100
    assert np.asarray(hints.make_hint("normal", Image.new("RGB", SIZE)))[32, 48].tolist() == [
        128, 128, 255,
    ]  # fmt: skip


def test_miniature_palette_has_a_color_for_each_class() -> None:
    palette = drawing.make_miniature_palette()
    assert len({tuple(c) for c in palette.tolist()}) == 150
    assert (palette.sum(1) > 0).all()
    hint = np.asarray(drawing.draw_label_map(np.array([[-1, 0], [1, 149]])))
    assert hint[0, 0].tolist() == [0, 0, 0]
    assert hint[1, 1].tolist() == palette[149].tolist()


def nearer(picture: Image.Image) -> NDArray[np.float32]:
    """Return a depth that is nearer to the right."""
    return np.tile(np.linspace(3, 7, picture.width, dtype=np.float32), (picture.height, 1))


def test_hints_from_an_estimated_depth_draw_it() -> None:
    hint = hints.make_hint("depth", square(), estimate=nearer)
    assert (hint.size, hint.mode) == (SIZE, "RGB")
    assert np.array_equal(gray(hint)[0], np.rint(np.linspace(0, 255, 96)))
    of_photo = np.asarray(hints.make_hint("normal", square(), {"strength": 3}, nearer), np.int16)
    of_depth = np.asarray(hints.make_hint("normal", hint, {"strength": 3}), np.int16)
    assert np.abs(of_photo - of_depth).max() <= 3
    assert len(np.unique(of_photo[32, 8:-8, 0])) < len(np.unique(of_depth[32, 8:-8, 0]))


def test_segmentation_hint_uses_the_ade20k_colors() -> None:
    assert drawing.ADE20K_PALETTE.shape == (150, 3)
    table = {0: (120, 120, 120), 2: (6, 230, 230), 12: (150, 5, 61), 149: (92, 0, 255)}
    seen = np.array([list(table)])

    def estimate(picture: Image.Image) -> NDArray[np.int64]:
        del picture
        return seen

    hint = hints.make_hint("segmentation", square(), estimate=estimate)
    assert np.asarray(hint)[0].tolist() == [list(color) for color in table.values()]


def keypoints(**change: object) -> bytes:
    joints = [[10 + 4 * i, 8 + 2 * i, 1.0] for i in range(18)]
    joints[4][2] = 0.0
    person = {"pose_keypoints_2d": [number for joint in joints for number in joint]}
    return json.dumps(
        {"canvas_width": 96, "canvas_height": 64, "people": [person], **change}
    ).encode()


def test_pose_hint_is_drawn_from_keypoints_at_any_size() -> None:
    hint = hints.decode_control_image("pose", codec.Picture(data=keypoints()))
    assert hint.size == SIZE
    assert np.asarray(hint)[8, 10].max() == 255  # the nose
    twice = np.asarray(drawing.draw_pose(keypoints(), (192, 128)))
    assert twice.shape == (128, 192, 3)
    assert twice[16, 20].max() == 255


@pytest.mark.parametrize(
    "data",
    [b"[]", b"{", keypoints(people=[{}]), keypoints(canvas_width=0), keypoints(people=[{"a": 1}])],
)
def test_invalid_keypoints_are_refused(data: bytes) -> None:
    with pytest.raises(PictureError, match="keypoints"):
        drawing.draw_pose(data)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: hints.make_hint("canny", square(), {"lo": 3}), "no option 'lo'. Did you mean low"),
        (lambda: hints.make_hint("depth", square()), "depth hint is only made with an estimator"),
        (lambda: hints.make_hint("canny", square(), {}, nearer), "canny hint is not made with an"),
        (lambda: hints.check_hint("depth", {"low": 1}), "depth has no option 'low'. It has none"),
        (lambda: hints.check_hint("pose", {}), "cannot be made from a picture"),
    ],
)
def test_hint_with_wrong_options_or_estimator_is_refused(
    act: Callable[[], object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        act()


def test_every_option_of_a_preprocessor_has_a_range() -> None:
    makers = (*hints.HINT_FROM_PICTURE.values(), *hints.HINT_FROM_ESTIMATE.values())
    for maker in makers:
        for name, parameter in inspect.signature(maker).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                least, most = HINT_OPTION_RANGES[name]
                assert least <= parameter.default <= most, (maker, name)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("blur", "radius", 1e6),
        ("blur", "radius", 0.0),
        ("scribble", "width", 1e5),
        ("lineart", "width", -1.0),
        ("shuffle", "waves", 1e5),
        ("shuffle", "seed", -1.0),
        ("tile", "factor", 0.0),
        ("palette", "squares", 1e9),
        ("canny", "low", -5.0),
        ("normal", "strength", 1e30),
    ],
)
def test_option_of_a_preprocessor_out_of_range_is_rejected(
    kind: str, option: str, value: float
) -> None:
    with pytest.raises(RequestError, match=f"options.{option}: .* is out of range. It must be"):
        Control(kind=kind, options={option: value})
