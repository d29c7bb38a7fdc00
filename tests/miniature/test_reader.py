"""The reader's ground truth, and the scores of its readings."""

import dataclasses

import numpy as np

from miniature import control, reader
from miniature.reader import Reader, Reading, colored, overlap
from miniature.rendering import labels
from miniature.scenes import COLORS, OUTLINES, allowed_backgrounds, allowed_colors, recolored


def test_perfect_reading_has_overlap_and_color_score_1() -> None:
    scenes = [control.held_out_scene(seed) for seed in range(6)]
    assert all(scene.held_out for scene in scenes)
    truths = [reader.truth(scene) for scene in scenes]
    perfect = Reading(
        *(np.concatenate([getattr(t, f) for t in truths]) for f in ("shapes", "colors", "styles"))
    )
    assert overlap(perfect, scenes).tolist() == [1.0] * 6
    assert colored(perfect, scenes) == 1.0
    empty = dataclasses.replace(perfect, shapes=np.full_like(perfect.shapes, -1))
    assert overlap(empty, scenes).tolist() == [0.0] * 6
    assert colored(empty, scenes) == 0.0
    moved = dataclasses.replace(perfect, shapes=np.roll(perfect.shapes, 20, axis=2))
    assert 0 < overlap(moved, scenes).mean() < 0.7


def test_perfect_reading_has_novel_styles_and_shapes() -> None:
    scenes = [reader.scene_of(seed) for seed in range(60)]
    assert {s.style for s in scenes} == set(reader.ALL_STYLES)
    birds = [any(o.shape == "bird" for o in s.objects) for s in scenes]
    assert 4 < sum(birds) < 20
    for scene, bird in zip(scenes, birds, strict=True):
        truth = reader.truth(scene)
        assert [reader.styled(truth, s)[0] for s in reader.ALL_STYLES].count(True) == 1
        assert reader.styled(truth, scene.style)[0]
        assert reader.shown(truth, "bird")[0] == bird


def test_recolored_scene_keeps_only_its_structure() -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        scene = control.scene_of(seed)
        other = recolored(rng, scene, held_out=True)
        assert (labels(other) == labels(scene)).all()
        assert other.style != scene.style
        assert other.held_out
        assert other.background != scene.background
        assert other.background in allowed_backgrounds(other.style)
        for before, after in zip(scene.objects, other.objects, strict=True):
            assert after.color != before.color
            assert after.color in allowed_colors(other.style, other.background)
            assert dataclasses.replace(after, color=before.color) == before


def test_reader_gives_shape_and_color_of_every_pixel() -> None:
    reading = Reader().eval().read(np.zeros((3, 64, 96, 3), np.uint8))
    assert reading.shapes.shape == reading.colors.shape == (3, 64, 96)
    assert -1 <= reading.shapes.min() <= reading.shapes.max() < len(OUTLINES)
    assert reading.colors.max() < len(COLORS)
    assert reading.styles.shape == (3,)
