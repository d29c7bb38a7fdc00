from typing import Any

import numpy as np
import pytest

from miniature.rendering import render
from miniature.scenes import (
    BACKGROUNDS,
    COLORS,
    NOVEL_STYLES,
    SHAPES,
    STYLES,
    Scene,
    allowed_backgrounds,
    allowed_colors,
    caption,
    draw_scene,
    vocabulary,
    with_shape,
)


def scenes(count: int, **asked: Any) -> list[Scene]:
    return [draw_scene(np.random.default_rng(i), **asked) for i in range(count)]


def test_a_seed_is_one_picture_and_one_caption():
    first, second = (draw_scene(np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert (render(first) == render(second)).all()
    captions = {caption(first, np.random.default_rng(3)) for _ in range(3)}
    assert len(captions) == 1


def test_held_out_combinations_never_reach_training():
    assert not any(s.held_out for s in scenes(300))
    held = scenes(100, held_out=True)
    assert all(s.held_out for s in held)
    assert not {s.key for s in held} & {s.key for s in scenes(300)}


def test_every_attribute_turns_up():
    drawn = scenes(600)
    assert {s.style for s in drawn} == set(STYLES)
    assert {s.background for s in drawn} == set(BACKGROUNDS)
    assert {o.shape for s in drawn for o in s.objects} == set(SHAPES)
    assert {o.color for s in drawn for o in s.objects} == set(COLORS)


def test_objects_can_be_told_from_the_background():
    for scene in scenes(300):
        assert scene.background in allowed_backgrounds(scene.style)
        colors = allowed_colors(scene.style, scene.background)
        assert all(o.color in colors for o in scene.objects)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 128), (96, 128), (152, 104)])
def test_objects_lie_inside_and_stand_in_their_relation(width: int, height: int):
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), width, height)
        for item in scene.objects:
            assert item.radius <= item.x <= width - item.radius
            assert item.radius <= item.y <= height - item.radius
        if scene.relation is None:
            continue
        first, second = scene.objects
        gaps = {
            "above": second.y - first.y,
            "below": first.y - second.y,
            "left of": second.x - first.x,
            "right of": first.x - second.x,
        }
        assert gaps[scene.relation] > 0.3 * min(width, height)
        assert gaps[scene.relation] >= first.radius + second.radius  # they do not touch
        low, high = scene.ordered
        assert low.x < high.x if scene.relation.endswith("of") else low.y < high.y


@pytest.mark.parametrize("style", STYLES + NOVEL_STYLES)
def test_styles_paint_the_size_they_are_asked_for(style: str):
    scene = draw_scene(np.random.default_rng(3), 150, 98, styles=(style,))
    picture = render(scene)
    assert picture.shape == (98, 150, 3)
    assert picture.std() > 5


def test_a_full_caption_says_everything():
    for scene in scenes(200):
        said = caption(scene, np.random.default_rng(scene.texture), full=True)
        for item in scene.objects:
            assert item.color in said
            assert item.shape in said
        names = {"grass": "meadow", "night": "night"}
        assert scene.background in said or names.get(scene.background, "?") in said
        assert scene.style.split()[0].removesuffix(" sign") in said


def test_a_caption_keeps_the_relation_when_told_from_the_other_object():
    words = {"above": {"above", "over"}, "below": {"below", "under"}}
    for scene in scenes(300, two=True):
        if scene.relation not in ("above", "below"):
            continue
        said = caption(scene, np.random.default_rng(scene.texture), full=True).split()
        first = next(w for w in said if w in {o.shape for o in scene.objects})
        told = scene.relation if first == scene.objects[0].shape else None
        expected = (
            words[told] if told else words[{"above": "below", "below": "above"}[scene.relation]]
        )
        assert expected & set(said)


def test_every_word_of_a_caption_is_in_the_vocabulary():
    known = set(vocabulary())
    for scene in scenes(300):
        said = caption(scene, np.random.default_rng(scene.texture))
        assert set(said.replace(",", "").split()) <= known


def test_what_the_base_never_saw_is_told_in_its_vocabulary():
    known = set(vocabulary())
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scene = with_shape(draw_scene(rng, styles=NOVEL_STYLES), "bird", rng)
        said = caption(scene, rng, full=True)
        assert set(said.replace(",", "").split()) <= known
        assert scene.style in said
        assert "bird" in said
        assert scene.background in allowed_backgrounds(scene.style)
    assert not set(NOVEL_STYLES) & {s.style for s in scenes(300)}
