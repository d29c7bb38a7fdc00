"""Keypoints of poses in the variants that programs write."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from overpaint.errors import PictureError
from overpaint.imaging import codec, hints
from overpaint.imaging.canvas import lay_out
from overpaint.imaging.hints import drawing
from overpaint.request import Request
from overpaint.request.parts import Control
from overpaint.system.abandon import AbandonedError, abandonable

FILES = Path(__file__).parent / "files" / "pose"
LISTED = json.loads((FILES / "list.json").read_bytes())
JOINTS = np.array(LISTED[0]["people"][0]["pose_keypoints_2d"])
POINTS: list[list[float]] = JOINTS.reshape(18, 3).tolist()
CANVAS = {"canvas_width": 128, "canvas_height": 128}
PLAIN: dict[str, Any] = {"people": [{"pose_keypoints_2d": JOINTS.tolist()}], **CANVAS}
BODY_25 = [*POINTS[:8], [60.0, 75.0, 1.0], *POINTS[8:], *[[70.0, 120.0, 1.0]] * 6]
SHARES = (np.reshape(POINTS, (18, 3)) / (128, 128, 1)).tolist()


def draw(document: Any, fallback: tuple[int, int] | None = (128, 128)) -> Image.Image:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return hints.decode_control_image("pose", codec.Picture(data=data), fallback)


def flat(points: Any) -> list[float]:
    return [number for point in points for number in point]


@pytest.mark.parametrize(
    "document",
    [
        [PLAIN],
        [PLAIN, PLAIN],
        {"people": [{"pose_keypoints_2d": flat(BODY_25)}], **CANVAS},
        {"people": [{"pose_keypoints_2d": flat(BODY_25)}]},
        {"people": [{"pose_keypoints_2d": flat(SHARES)}], **CANVAS},
        {"people": [{"pose_keypoints_2d": flat(SHARES)}]},
        {"people": [{"pose_keypoints_2d": POINTS}], **CANVAS},
        {"people": [{"pose_keypoints_2d": [p[:2] for p in POINTS]}], **CANVAS},
        {"people": [{"pose_keypoints_2d": flat(p[:2] for p in POINTS)}], **CANVAS},
        {"people": [{"keypoints": flat(POINTS)}], **CANVAS},
        {"people": [flat(POINTS)], **CANVAS},
        {"width": 128, "height": 128, "keypoints": [[p[:2] for p in POINTS]]},
        {"width": 128, "height": 128, "keypoints": POINTS},
        {"pose_keypoints_2d": flat(POINTS)},
        [{"pose_keypoints_2d": flat(POINTS)}],
        [flat(POINTS)],
        flat(POINTS),
        POINTS,
        {"people": [{"pose_keypoints_2d": None}, {"pose_keypoints_2d": []}, *PLAIN["people"]]},
        b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(),
    ],
    ids=range(20),
)
def test_pose_in_each_format_draws_the_same_person(document: Any) -> None:
    shown, wanted = draw(document), draw(PLAIN)
    assert shown.size == (128, 128)
    assert shown.tobytes() == wanted.tobytes()
    assert hints.describe_dark_hint("pose", shown) is None


@pytest.mark.parametrize("name", ["body25", "list", "normalised"])
def test_pose_files_of_other_programs_are_drawn(name: str) -> None:
    shown = draw((FILES / f"{name}.json").read_bytes())
    assert np.asarray(shown)[20, 64].max() == 255  # the nose
    assert np.asarray(shown)[118, 55].max() == 255  # an ankle


def test_pose_of_coco_joints_gets_a_neck() -> None:
    order = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
    document = {"people": [{"pose_keypoints_2d": flat(POINTS[i] for i in order)}], **CANVAS}
    shown, wanted = (np.asarray(draw(d), int) for d in (document, PLAIN))
    assert np.abs(shown - wanted).mean() < 6
    assert shown[36, 64].max() > 100


def test_pose_without_a_joint_does_not_draw_it() -> None:
    points: list[Any] = [list(p) for p in POINTS]
    points[4] = None
    shown = draw({"people": [{"pose_keypoints_2d": points}], **CANVAS})
    assert np.asarray(shown)[72, 42].max() == 0
    points = [[-1.0, -1.0] if i == 4 else p[:2] for i, p in enumerate(POINTS)]
    shown = draw({"people": [{"pose_keypoints_2d": points}], **CANVAS})
    assert np.asarray(shown)[72, 42].max() == 0


def test_pose_without_canvas_takes_the_size_of_picture_or_joints() -> None:
    bare = {"people": PLAIN["people"]}
    assert draw(bare, (256, 192)).size == (256, 192)
    assert draw(bare, (64, 48)).size[0] > 90  # large enough, in the same aspect
    alone = draw(bare, None)
    assert alone.width >= 96
    assert alone.height >= 128
    assert np.asarray(alone)[118, 55].max() == 255
    assert draw({"people": [{"pose_keypoints_2d": flat(SHARES)}]}, None).size == (1024, 1024)


def test_pose_without_canvas_gives_the_native_size() -> None:
    def ask(document: Any) -> Request:
        picture = codec.Picture(data=json.dumps(document).encode())
        return Request(controls=(Control(kind="pose", hint=picture),))

    assert lay_out(ask({"people": PLAIN["people"]}), 128).size == (128, 128)
    wide = {**PLAIN, "canvas_width": 256}
    assert lay_out(ask(wide), 128).size == (184, 88)


@pytest.mark.parametrize(
    "document",
    [
        {"people": [{"pose_keypoints_2d": [1, 2, 3]}], **CANVAS},
        {"people": [{"pose_keypoints_2d": "text"}], **CANVAS},
        {"people": [{"pose_keypoints_2d": [{}]}], **CANVAS},
        {"people": 3, **CANVAS},
        {"animals": [[1, 2, 3]]},
        {**PLAIN, "canvas_width": 10**6, "canvas_height": 10**6},
        {**PLAIN, "canvas_width": -1},
        {**PLAIN, "canvas_width": "wide"},
        [],
        [[]],
        [None],
        b"[" * 100_000,
        b'{"people": [{"pose_keypoints_2d": [' + b"1e999, " * 53 + b"1]}]}",
    ],
    ids=range(13),
)
def test_pose_in_an_unknown_format_is_refused(document: Any) -> None:
    with pytest.raises(PictureError, match="keypoints"):
        draw(document)


def test_pose_with_joints_far_outside_is_drawn_without_them() -> None:
    points = [[1e12, -1e12, 1.0] if i in (3, 4) else p for i, p in enumerate(POINTS)]
    shown = draw({"people": [{"pose_keypoints_2d": flat(points)}], **CANVAS})
    assert np.asarray(shown)[20, 64].max() == 255


def test_describe_dark_hint_reports_a_nearly_black_hint() -> None:
    empty = draw({"people": [], **CANVAS})
    said = hints.describe_dark_hint("pose", empty)
    assert said == (
        "the pose control image is nearly black (0.00% of its pixels are not): it steers "
        "almost nothing."
    )
    plain = hints.make_hint("canny", Image.new("RGB", (64, 64), "white"))
    assert hints.describe_dark_hint("canny", plain)
    assert drawing.draw_pose(json.dumps(PLAIN).encode(), (256, 256)).size == (256, 256)


def test_pose_of_too_many_people_is_refused() -> None:
    people = PLAIN["people"] * 101
    with pytest.raises(PictureError, match="has 101 people; give at most 100"):
        draw({"people": people, **CANVAS})
    assert draw({"people": people[:100], **CANVAS}) == draw(PLAIN)


def test_pose_that_nobody_waits_for_is_abandoned() -> None:
    event = threading.Event()
    with abandonable(event):
        event.set()
        with pytest.raises(AbandonedError):
            draw(PLAIN)
