"""Read the keypoints of people from JSON in the variants of OpenPose that programs write."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overpaint.errors import PictureError
from overpaint.imaging.codec import MAX_UPLOAD_PIXELS

JOINT_COUNT = 18
"""Joints of OpenPose's COCO model (arXiv 1812.08008): nose, neck, right arm, left arm …"""

NECK = 1
SHOULDERS = (2, 5)
JOINTS_BY_COUNT: dict[int, tuple[int, ...]] = {
    18: tuple(range(18)),
    25: (*range(8), *range(9, 19)),
    17: (0, 0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3),
}
"""The place of each joint in models of 18 joints, in BODY_25 (whose ninth is the middle of the hip,
and whose last are feet), and in COCO's 17, where the neck is the middle of the shoulders."""

CANVAS_KEYS = (("canvas_width", "canvas_height"), ("width", "height"))
PERSON_KEYS = ("pose_keypoints_2d", "keypoints", "pose_keypoints")
MAX_NORMALIZED = 2.0
"""Coordinates up to here are shares of the canvas: a person of two pixels cannot be drawn."""
MAX_PEOPLE = 100
"""People in a file, at most."""
FAR_SHARE = 4.0
"""Joints further out than this many canvases are not drawn."""
UNIT_CANVAS = (1024, 1024)
"""The canvas of normalized keypoints without one."""
EXPECTED = (
    "expected OpenPose's JSON: people[].pose_keypoints_2d of 17, 18 or 25 joints (x, y, "
    "confidence), in pixels of canvas_width and canvas_height or as shares of them."
)


@dataclass(frozen=True, eq=False)
class Pose:
    """People in a picture.

    Attributes:
        canvas: (width, height) that the file states; None if it states none.
        people: the joints [18, 3] of each person: x, y, confidence.
        normalized: coordinates are shares of the canvas.
    """

    canvas: tuple[int, int] | None
    people: list[NDArray[np.float64]]
    normalized: bool

    def place(
        self, size: tuple[int, int] | None, fallback: tuple[int, int] | None
    ) -> tuple[tuple[int, int], list[NDArray[np.float64]]]:
        """Return the size to draw at, and the people in its pixels.

        Args:
            size: (width, height) to draw at; by default the canvas.
            fallback: the canvas of a file without one; by default it follows from the joints.
        """
        canvas = self.canvas or self._enlarge(fallback) or self._guess_canvas()
        size = size or canvas
        unit = (1, 1) if self.normalized else canvas
        scale = np.array([size[0] / unit[0], size[1] / unit[1], 1])
        people = [person * scale for person in self.people]
        for person in people:
            far = (np.abs(person[:, :2]) > FAR_SHARE * max(size)).any(axis=1)
            person[far] = 0
        return size, people

    def _enlarge(self, canvas: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return a canvas in its aspect that holds all joints."""
        if canvas is None or self.normalized:
            return canvas
        reach = self._measure_reach()
        factor = max(1.0, *(1.05 * far / side for far, side in zip(reach, canvas, strict=True)))
        factor = min(factor, (MAX_UPLOAD_PIXELS / (canvas[0] * canvas[1])) ** 0.5)
        return round(canvas[0] * factor), round(canvas[1] * factor)

    def _measure_reach(self) -> tuple[float, float]:
        """Return the largest x and y of all joints."""
        joints = np.concatenate([np.zeros((1, 3)), *self.people])
        across, down = joints[joints[:, 2] > 0][:, :2].max(axis=0, initial=1)
        return float(across), float(down)

    def _guess_canvas(self) -> tuple[int, int]:
        """Return a canvas that holds all joints, with a margin, in steps of 64 pixels."""
        if self.normalized or not self.people:
            return UNIT_CANVAS
        largest = int(MAX_UPLOAD_PIXELS**0.5)
        width, height = (
            int(min(-(-side * 1.05 // 64) * 64, largest)) for side in self._measure_reach()
        )
        return width, height


def read_pose(data: bytes) -> Pose:
    """Read keypoints.

    A file is an object with `people`, a person, or a list of either, whose first canvas counts.

    Raises:
        PictureError: the JSON is malformed, or holds no keypoints that are known.
    """
    try:
        document: Any = json.loads(data)
        if isinstance(document, list) and len(document) == 1:
            document = document[0]
        canvas = _read_canvas(document)
        listed = _list_people(document)
        if len(listed) > MAX_PEOPLE:
            raise PictureError(
                f"keypoints: the file has {len(listed):,} people; give at most {MAX_PEOPLE}."
            )
        people = [_read_person(person) for person in listed]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError) as error:
        raise PictureError(f"keypoints: {error!r}; {EXPECTED}") from error
    people = [person for person in people if person is not None]
    joints = np.concatenate([np.zeros((1, 3)), *people])
    if not np.isfinite(joints).all():
        raise PictureError("keypoints: a joint is not finite; give finite joints.")
    if canvas and not (min(canvas) >= 1 and canvas[0] * canvas[1] <= MAX_UPLOAD_PIXELS):
        raise PictureError(
            f"keypoints: the canvas is {canvas[0]}x{canvas[1]}; give one of at least 1x1 and at "
            f"most {MAX_UPLOAD_PIXELS:,} pixels."
        )
    reach = float(np.abs(joints[joints[:, 2] > 0][:, :2]).max(initial=0))
    normalized = 0 < reach <= MAX_NORMALIZED
    return Pose(canvas, people, normalized)


def _list_people(document: Any) -> list[Any]:
    """Return the persons of a document; of a list of documents, those of the first."""
    if isinstance(document, Mapping):
        if "people" in document:
            return list(document["people"])
        points: Any = document.get("keypoints")
        return list(points) if _count_levels(points) > 2 else [document]
    first = document[0]
    if isinstance(first, Mapping) and "people" in first:
        return list(first["people"])
    one_person = not isinstance(first, Mapping) and (
        _count_levels(document) == 1 or (_count_levels(document) == 2 and len(first) <= 4)
    )
    return [document] if one_person else list(document)


def _count_levels(value: Any) -> int:
    """Return how deeply lists are nested."""
    return 1 + _count_levels(value[0]) if isinstance(value, list) and value else 0


def _read_canvas(document: Any) -> tuple[int, int] | None:
    if isinstance(document, list):
        document = document[0]
    if not isinstance(document, Mapping):
        return None
    for across, down in CANVAS_KEYS:
        if document.get(across) is not None and document.get(down) is not None:
            return int(document[across]), int(document[down])
    return None


def _read_person(person: Any) -> NDArray[np.float64] | None:
    """Return a person's joints [18, 3]; None for one without a body, such as a face alone."""
    if isinstance(person, Mapping):
        key = next((key for key in PERSON_KEYS if key in person), PERSON_KEYS[0])
        if person[key] is None:
            return None
        person = person[key]
    if not isinstance(person, Sequence) or isinstance(person, str):
        raise TypeError("a person is not a list of numbers")
    if not person:
        return None
    return _order_joints(_read_joints(person))


def _read_joints(numbers: Sequence[Any]) -> NDArray[np.float64]:
    """Return joints [count, 3] from a flat list, or a list of points; None is a missing point."""
    if any(isinstance(point, Sequence) for point in numbers):
        points = [[0.0, 0.0, 0.0] if p is None else [*map(float, p)] for p in numbers]
        return np.array([p if len(p) > 2 else [*p, float(max(p) > 0)] for p in points])[:, :3]
    flat = np.array([0.0 if number is None else float(number) for number in numbers])
    count, rest = divmod(flat.size, 3)
    if rest == 0 and count in JOINTS_BY_COUNT:
        return flat.reshape(count, 3)
    pairs = flat.reshape(-1, 2)
    return np.concatenate([pairs, pairs.max(axis=1, keepdims=True) > 0], axis=1)


def _order_joints(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return joints in the order of the model of 18."""
    if (places := JOINTS_BY_COUNT.get(len(joints))) is None:
        raise ValueError(f"a person has {len(joints)} joints")
    ordered = joints[list(places)]
    if len(joints) == 17:
        ordered[NECK] = ordered[list(SHOULDERS)].mean(axis=0)
        ordered[NECK, 2] = ordered[list(SHOULDERS), 2].min()
    return ordered
