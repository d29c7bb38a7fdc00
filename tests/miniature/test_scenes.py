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


def scenes(count: int, **options: Any) -> list[Scene]:
    return [draw_scene(np.random.default_rng(i), **options) for i in range(count)]


def test_scene_of_a_seed_has_one_picture_and_caption():
    first, second = (draw_scene(np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert (render(first) == render(second)).all()
    captions = {caption(first, np.random.default_rng(3)) for _ in range(3)}
    assert len(captions) == 1


def test_scenes_without_held_out_have_no_held_out_combination():
    assert not any(s.held_out for s in scenes(300))
    held = scenes(100, held_out=True)
    assert all(s.held_out for s in held)
    assert not {s.key for s in held} & {s.key for s in scenes(300)}


def test_scenes_of_many_seeds_have_every_attribute():
    drawn = scenes(600)
    assert {s.style for s in drawn} == set(STYLES)
    assert {s.background for s in drawn} == set(BACKGROUNDS)
    assert {o.shape for s in drawn for o in s.objects} == set(SHAPES)
    assert {o.color for s in drawn for o in s.objects} == set(COLORS)


def test_objects_have_colors_allowed_on_their_background():
    for scene in scenes(300):
        assert scene.background in allowed_backgrounds(scene.style)
        colors = allowed_colors(scene.style, scene.background)
        assert all(o.color in colors for o in scene.objects)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 128), (96, 128), (152, 104)])
def test_objects_lie_inside_the_picture_in_their_relation(width: int, height: int):
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
def test_styles_render_the_requested_size(style: str):
    scene = draw_scene(np.random.default_rng(3), 150, 98, styles=(style,))
    picture = render(scene)
    assert picture.shape == (98, 150, 3)
    assert picture.std() > 5


def test_full_caption_names_objects_background_and_style():
    for scene in scenes(200):
        text = caption(scene, np.random.default_rng(scene.texture), full=True)
        for item in scene.objects:
            assert item.color in text
            assert item.shape in text
        names = {"grass": "meadow", "night": "night"}
        assert scene.background in text or names.get(scene.background, "?") in text
        assert scene.style.split()[0].removesuffix(" sign") in text


def test_caption_from_the_second_object_inverts_the_relation():
    words = {"above": {"above", "over"}, "below": {"below", "under"}}
    for scene in scenes(300, two=True):
        if scene.relation not in ("above", "below"):
            continue
        text = caption(scene, np.random.default_rng(scene.texture), full=True).split()
        first = next(w for w in text if w in {o.shape for o in scene.objects})
        relation = scene.relation if first == scene.objects[0].shape else None
        expected = (
            words[relation]
            if relation
            else words[{"above": "below", "below": "above"}[scene.relation]]
        )
        assert expected & set(text)


def test_caption_words_are_in_the_vocabulary():
    known = set(vocabulary())
    for scene in scenes(300):
        text = caption(scene, np.random.default_rng(scene.texture))
        assert set(text.replace(",", "").split()) <= known


def test_caption_words_of_novel_styles_and_shapes_are_in_the_vocabulary():
    known = set(vocabulary())
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scene = with_shape(draw_scene(rng, styles=NOVEL_STYLES), "bird", rng)
        text = caption(scene, rng, full=True)
        assert set(text.replace(",", "").split()) <= known
        assert scene.style in text
        assert "bird" in text
        assert scene.background in allowed_backgrounds(scene.style)
    assert not set(NOVEL_STYLES) & {s.style for s in scenes(300)}
