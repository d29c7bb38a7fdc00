import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import (
    concepts,
    data,
    judge,
    text,
    unet,
    vae,
)
from miniature.__main__ import Workload, main
from miniature.common import Trainee, averaged_weights, cosine, write_tensors
from miniature.data import SHAPES, draw_view, render_view
from miniature.family import Painter
from miniature.judge import HEADS, Judge, truth
from miniature.measure import fit, never_falls
from miniature.scenes import draw_scene
from overpaint.models.checkpoint import load_model
from overpaint.models.controlnet import load_controlnet
from overpaint.models.embedding import load_embedding
from overpaint.models.lora import load_lora
from overpaint.models.separate_parts import PartPath
from overpaint.models.tiny_decoder import load_tiny_decoder


def test_cosine_rate_warms_up_and_falls_to_its_floor():
    shares = [cosine(step, 1000, warmup=100) for step in range(1000)]
    assert shares[99] == max(shares) == 1
    assert shares == sorted(shares[:100]) + sorted(shares[100:], reverse=True)
    assert shares[-1] == pytest.approx(0.01, abs=1e-4)


def _step(trainee: Trainee, seed: int) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    trainee.update(trainee.module(x).square().mean(), 1.0)


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path):
    def fresh() -> Trainee:
        torch.manual_seed(0)
        return Trainee(torch.nn.Linear(3, 2), rate=0.1)

    whole, part = fresh(), fresh()
    for seed in range(6):
        _step(whole, seed)
    for seed in range(3):
        _step(part, seed)
    part.save(tmp_path / "state.safetensors")
    resumed = fresh()
    resumed.load(tmp_path / "state.safetensors")
    for seed in range(3, 6):
        _step(resumed, seed)
    assert resumed.step == whole.step == 6
    for a, b in zip(resumed.averaged.parameters(), whole.averaged.parameters(), strict=True):
        assert torch.equal(a, b)


def test_update_with_gradient_that_is_not_finite_is_skipped(capsys: pytest.CaptureFixture[str]):
    trainee = Trainee(torch.nn.Linear(3, 2), rate=0.1)
    before = trainee.module.state_dict()["weight"].clone()
    trainee.update(trainee.module(torch.full((1, 3), torch.inf)).sum() * 0, 1.0)
    assert torch.equal(trainee.module.state_dict()["weight"], before)
    assert "not finite" in capsys.readouterr().out


def test_loss_weights_fall_with_the_signal_up_to_their_limit():
    alphas = torch.tensor([0.9999, 5 / 6, 0.5, 0.2, 0.001])  # SNR 9999, 5, 1, 1/4, about 1/1000
    torch.testing.assert_close(unet.weight(alphas), torch.tensor([5 / 9999, 1, 1, 2, 10]))


def test_size_ids_of_cropped_views_contain_the_position():
    drawn = [draw_view(seed) for seed in range(200)]
    cropped = [v for v in drawn if (v.scene.height, v.scene.width) != (v.height, v.width)]
    assert 5 < len(cropped) < 40
    for view in cropped:
        height, width, top, left, *target = view.time_ids
        assert target == [128, 128]
        assert top + 128 <= height
        assert left + 128 <= width
        assert render_view(view).shape == (128, 128, 3)
    assert {(v.height, v.width) for v in map(draw_view, range(400))} == set(SHAPES)


def test_views_from_several_processes_equal_those_from_one():
    seeds = range(data.CHUNK + 2)
    made = [view for view, _ in data.views(seeds)]
    assert made == list(map(draw_view, seeds))
    (_, pixels), *_ = data.views(seeds[-1:])
    assert np.array_equal(pixels, render_view(made[-1]))


def test_quarter_of_the_views_has_no_objects():
    empty = [v for v in map(draw_view, range(400)) if not v.scene.objects]
    assert 70 < len(empty) < 130
    assert {v.scene.relation for v in empty} == {None}


def test_extended_training_restarts_its_schedule(tmp_path: Path):
    state = tmp_path / "state.safetensors"

    def shares(steps: int, stop: int | None = None) -> list[float]:
        """Of the peak rate, at every step until the run is stopped."""
        found: list[float] = []

        class Recorded(Trainee):
            def update(self, loss: torch.Tensor, share: float, clip: float = 1.0) -> float:
                found.append(share)
                return super().update(loss, share, clip)

        def loss(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return trainee.module(torch.ones(1, 3)).square().sum()

        trainee = Recorded(torch.nn.Linear(3, 2), rate=1.0)
        with contextlib.suppress(KeyboardInterrupt):
            trainee.train("it", steps, loss, state, warmup=2, every=1)
        return found

    first = shares(8)
    assert len(first) == 8
    assert shares(16, stop=12) + shares(16) == first
    assert shares(16) == []


def test_batch_of_a_step_is_deterministic(tmp_path: Path):
    seeds = [s for s in range(60) if (draw_view(s).height, draw_view(s).width) == (128, 128)]
    moments = torch.randn(len(seeds), 4, 16, 16).half()
    write_tensors(
        tmp_path / "0.safetensors",
        {
            "mean.128x128": moments,
            "std.128x128": moments.abs(),
            "seed.128x128": torch.tensor(seeds),
        },
    )
    found = unet.buckets(tmp_path)
    first, again, other = (unet.draw_batch(found, 2.0, 1, step, unet.BATCH) for step in (5, 5, 6))
    assert first.captions == again.captions != other.captions
    assert torch.equal(first.latents, again.latents)
    assert first.latents.shape == (unet.BATCH, 4, 16, 16)
    assert first.time_ids.shape == (unet.BATCH, 6)


def test_text_encoder_weights_load_into_the_painter(tmp_path: Path):
    text.train(tmp_path / "text.safetensors", steps=2, seed=1, batch_size=4, tests=8)
    learned = text.weights(tmp_path / "text.safetensors")
    painter = Painter(3)
    missing, unexpected = painter.load_state_dict(learned, strict=False)
    assert not unexpected
    assert all(name.startswith("unet.") for name in missing)
    token = painter.text_encoder_2.state_dict()["text_model.embeddings.token_embedding.weight"]
    assert torch.equal(
        token, learned["text_encoder_2.text_model.embeddings.token_embedding.weight"]
    )


@pytest.mark.slow
def test_text_encoders_after_training_know_the_first_object(tmp_path: Path):
    text.train(tmp_path / "text.safetensors", steps=1500, seed=1)
    shares = text.accuracy(tmp_path / "text.safetensors")
    assert min(shares.values()) >= 0.95


@pytest.mark.smoke
def test_make_command_trains_and_exports_all_models(tmp_path: Path):
    small = Workload(
        unet_scenes=12,
        vae_scenes=range(4),
        control_scenes=range(60_000_000, 60_000_004),
        concept_scenes=2,
        trajectories=1,
        judge_scenes=range(4),
        judge_tests=range(4),
        reader_scenes=range(6),
        reader_tests=range(4),
        folded=4,
        batch_size=2,
        packaged=tmp_path,
    )
    out, work = tmp_path / "export", tmp_path / "work"
    trained = ("vae", "text", "unet", "inpaint", "refiner", "control", "concepts")
    trained += ("few-step", "decoder", "tiny-decoder", "judge", "reader")
    steps = [f"--{stage}-steps=1" for stage in trained]
    threads = f"--threads={torch.get_num_threads()}"
    main(["make", f"--out={out}", f"--work={work}", threads, *steps], small)
    model = load_model(out, device="cpu")
    assert model.family.name == "miniature"
    assert (tmp_path / "export-inpaint" / "unet").is_dir()
    assert (tmp_path / "export-refiner" / "unet").is_dir()
    decoder = PartPath(tmp_path / "export-decoder" / "tiny.safetensors", "tiny")
    assert load_tiny_decoder(decoder, model).sha256
    nets = sorted((tmp_path / "export-control").iterdir())
    assert [load_controlnet(path, model).kind for path in nets] == [
        "controlnet", "controlnet", "controlnet", "adapter", "union",
    ]  # fmt: skip
    loras = {path.stem: load_lora(path, model) for path in (tmp_path / "export-lora").iterdir()}
    assert set(loras.pop("few-step").changes) == {"unet"}
    assert set(loras) == set(concepts.LORAS)
    for lora in loras.values():
        assert set(lora.changes) == {"unet", "text_encoder", "text_encoder_2"}
    toy = load_embedding(tmp_path / "export-embedding" / "toy.safetensors", "toy", model)
    assert toy.length == 2
    assert set(judge.load(tmp_path / "judge.safetensors").state_dict()) == set(Judge().state_dict())


def test_folded_vae_has_unit_variance_and_decodes_the_same_pictures(tmp_path: Path):
    trainee = Trainee(vae.build(2), rate=0.1)
    trainee.save(tmp_path / "vae.safetensors")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    plain = vae.build(2).eval()
    plain.load_state_dict(averaged_weights(tmp_path / "vae.safetensors"))
    folded = vae.finish(tmp_path / "vae.safetensors", pictures)
    x = vae.to_tensor(pictures)
    with torch.no_grad():
        latents = vae.encode(folded, x).mean * vae.scaling(folded)
        before, after = (vae.decode(m, vae.encode(m, x).mean) for m in (plain, folded))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-3)


def test_pictures_to_tensors_and_back_are_equal():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert (vae.to_pictures(vae.to_tensor(pictures)) == pictures).all()


def test_judge_returns_one_verdict_for_each_picture():
    verdicts = Judge().eval().read(np.zeros((3, 128, 128, 3), np.uint8))
    assert len(verdicts) == 3
    assert all(v.style in HEADS["style"] for v in verdicts)
    assert all(len(v.objects) == (1 if v.layout == "one" else 2) for v in verdicts)


def test_fit_is_1_only_for_the_true_scene():
    scene = draw_scene(np.random.default_rng(1), two=True)
    other = draw_scene(np.random.default_rng(2), two=True)
    assert fit(truth(scene), truth(scene)) == 1
    assert fit(truth(other), truth(scene)) < 1


def test_never_falls_ignores_falls_within_the_noise():
    rng = np.random.default_rng(0)
    level = np.full((1, 50), 0.9) + np.array([[0.0], [0.001], [-0.002]])
    assert never_falls(level + rng.normal(0, 0.05, (3, 50)))
    assert not never_falls(
        np.array([[0.5] * 50, [0.9] * 50, [0.8] * 50]) + rng.normal(0, 0.05, (3, 50))
    )
