"""`python -m miniature make --out DIR`: render, train and export the miniature; see README.md.

Each stage is also a separate command. It works in `--work` and resumes after an interruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray

from miniature import (
    concepts,
    control,
    few_step,
    inpaint,
    judge,
    lora,
    reader,
    refiner,
    text,
    tiny_decoder,
    unet,
    vae,
    word,
)
from miniature.common import Trainee, averaged_weights, read_tensors
from miniature.data import native_scenes, rendered
from miniature.family import Painter, PreviewFactors, export, export_second
from miniature.reader import colored, overlap, styled
from miniature.scenes import Scene

STAGES = (
    "render",
    "vae",
    "encode",
    "text",
    "unet",
    "masks",
    "inpaint",
    "refiner",
    "hints",
    "control",
    "concepts",
    "trajectories",
    "few-step",
    "decoder",
    "tiny-decoder",
    "judge",
    "reader",
    "export",
)
"""In the order of `make`."""

MEASURES = (
    "measure",
    "measure-masks",
    "measure-control",
    "measure-concepts",
    "measure-presets",
    "measure-dtypes",
)


@dataclass(frozen=True)
class Workload:
    """The numbers of scenes and pictures of the stages. Ranges are seeds of scenes."""

    unet_scenes: int = 32_000
    vae_scenes: range = range(10_000_000, 10_005_000)
    control_scenes: range = control.SCENES
    concept_scenes: int = concepts.COUNT
    trajectories: int = few_step.COUNT
    judge_scenes: range = range(20_000_000, 20_020_000)
    judge_tests: range = range(30_000_000, 30_001_000)
    reader_scenes: range = range(62_000_000, 62_006_000)
    reader_tests: range = range(63_000_000, 63_000_500)
    text_tests: int = text.TESTS
    folded: int = 400
    """Pictures that give the mean and deviation of the latents."""
    batch_size: int | None = None
    """Pictures in a training step; None for the `BATCH` of each network."""
    packaged: Path = Path(__file__).parent
    """Folder to which the judge and the reader are written."""

    @property
    def judge(self) -> Path:
        """The file of the judge."""
        return self.packaged / "judge.safetensors"

    @property
    def reader(self) -> Path:
        """The file of the reader."""
        return self.packaged / "reader.safetensors"


FULL_WORKLOAD = Workload()


class Workshop:
    """The stages, over one folder of intermediate files."""

    def __init__(self, work: Path, seed: int, workload: Workload = FULL_WORKLOAD) -> None:
        self.work = work
        self.seed = seed
        self.workload = workload
        work.mkdir(parents=True, exist_ok=True)

    def _vae_scenes(self) -> NDArray[np.uint8]:
        path = self.work / "vae_scenes.npy"
        if not path.exists():
            np.save(path, native_scenes(self.workload.vae_scenes, held_out=False)[1])
        return np.load(path)

    def _autoencoder(self) -> AutoencoderKL:
        """Return the latest autoencoder, including separate training of the decoder."""
        state = self.work / "decoder.safetensors"
        if not state.exists():
            state = self.work / "vae.safetensors"
        return vae.finish(state, self._vae_scenes()[: self.workload.folded])

    def adopt(self, folder: Path) -> None:
        """Start from an exported folder without training states."""
        autoencoder = vae.build()
        autoencoder.load_state_dict(exported(folder / "vae"))
        Trainee(autoencoder, rate=0).save(self.work / "vae.safetensors")
        painter = Painter()
        painter.unet.load_state_dict(exported(folder / "unet"))
        painter.text_encoder.load_state_dict(exported(folder / "text_encoder"))
        painter.text_encoder_2.load_state_dict(exported(folder / "text_encoder_2"))
        Trainee(painter, rate=0).save(self.work / "unet.safetensors")

    def render(self) -> None:
        """Render the UNet's scenes."""
        unet.render(self.work / "pixels", self.workload.unet_scenes, 0)

    def vae(self, steps: int) -> None:
        """Train the autoencoder."""
        vae.train(
            self._vae_scenes(),
            self.work / "vae.safetensors",
            steps=steps,
            seed=self.seed,
            batch_size=self.workload.batch_size or vae.BATCH,
        )

    def decoder(self, steps: int) -> None:
        """Continue to train the decoder with a frozen encoder, so that latents stay the same."""
        vae.train(
            self._vae_scenes(),
            self.work / "decoder.safetensors",
            steps=steps,
            seed=self.seed + 10,
            batch_size=self.workload.batch_size or vae.BATCH,
            rate=1e-3,
            whole_share=1.0,
            start=averaged_weights(self.work / "vae.safetensors"),
        )

    def tiny_decoder(self, steps: int) -> None:
        """Train a tiny decoder for the autoencoder's latents."""
        tiny_decoder.train(
            self._autoencoder().requires_grad_(False),
            self._vae_scenes(),
            self.work / "tiny-decoder.safetensors",
            steps=steps,
            seed=self.seed + 80,
            batch_size=self.workload.batch_size or tiny_decoder.BATCH,
        )

    def encode(self) -> None:
        """Turn the rendered scenes into latents."""
        unet.encode(self._autoencoder(), self.work / "pixels", self.work / "latents")

    def text(self, steps: int) -> None:
        """Train the text encoders alone."""
        text.train(
            self.work / "text.safetensors",
            steps=steps,
            seed=self.seed + 40,
            batch_size=self.workload.batch_size or text.BATCH,
            tests=self.workload.text_tests,
        )

    def unet(self, steps: int, rate: float, keep_text: bool, compiled: bool) -> None:
        """Train the UNet and the text encoders."""
        scale = vae.scaling(self._autoencoder())
        state = self.work / "unet.safetensors"
        start = None if state.exists() else text.weights(self.work / "text.safetensors")
        unet.train(
            self.work / "latents",
            scale,
            state,
            steps=steps,
            seed=self.seed + 20,
            rate=rate,
            start=start,
            keep_text=keep_text,
            compiled=compiled,
            batch_size=self.workload.batch_size or unet.BATCH,
        )

    def _painter(self) -> Painter:
        """Return the averaged UNet and text encoders."""
        painter = Painter()
        painter.load_state_dict(averaged_weights(self.work / "unet.safetensors"))
        return painter.eval()

    def masks(self) -> None:
        """Draw a mask for each view, and encode the masked pictures as latents."""
        inpaint.encode(self._autoencoder(), self.work / "pixels", self.work / "masked")

    def inpaint(self, steps: int, compiled: bool) -> None:
        """Train the inpainting UNet."""
        inpaint.train(
            self.work / "masked",
            vae.scaling(self._autoencoder()),
            self._painter(),
            self.work / "inpaint.safetensors",
            steps=steps,
            seed=self.seed + 50,
            compiled=compiled,
            batch_size=self.workload.batch_size or inpaint.BATCH,
        )

    def refiner(self, steps: int) -> None:
        """Train the refiner."""
        refiner.train(
            self.work / "latents",
            vae.scaling(self._autoencoder()),
            self._painter(),
            self.work / "refiner.safetensors",
            steps=steps,
            seed=self.seed + 60,
            batch_size=self.workload.batch_size or refiner.BATCH,
        )

    def hints(self) -> None:
        """Render scenes and control images for the ControlNets."""
        control.encode(self._autoencoder(), self.work / "hints", self.workload.control_scenes)

    def control(self, kinds: Sequence[str], steps: int) -> None:
        """Train the ControlNets, one after another."""
        scale = vae.scaling(self._autoencoder())
        for number, kind in enumerate(control.ALL):
            if kind in kinds:
                control.train(
                    kind,
                    self.work / "hints",
                    scale,
                    self._painter(),
                    self.work / f"{kind}.safetensors",
                    steps=steps,
                    seed=self.seed + 100 + number,
                    batch_size=self.workload.batch_size or control.BATCH,
                )

    def concepts(self, kinds: Sequence[str], steps: int) -> None:
        """Render concepts that the base model lacks, and train LoRAs and an embedding for them."""
        autoencoder = self._autoencoder()
        scale = vae.scaling(autoencoder)
        for number, kind in enumerate(concepts.CONCEPTS):
            if kind not in kinds:
                continue
            latents = self.work / f"{kind}-latents.safetensors"
            concepts.encode(autoencoder, kind, latents, self.workload.concept_scenes)
            train = lora.train if kind in concepts.LORAS else word.train
            train(
                concepts.load(kind, latents),
                scale,
                self._painter(),
                self.work / f"{kind}.safetensors",
                steps=steps,
                seed=self.seed + 200 + number,
                batch_size=self.workload.batch_size or concepts.BATCH,
            )

    def trajectories(self) -> None:
        """Paint the trajectories that the few-step LoRA learns from."""
        count = self.workload.trajectories
        few_step.paint_trajectories(self._painter(), self.work / "trajectories", count)

    def few_step(self, steps: int) -> None:
        """Train the few-step LoRA."""
        few_step.train(
            few_step.load(self.work / "trajectories"),
            self._painter(),
            self.work / "few-step.safetensors",
            steps=steps,
            seed=self.seed + 300,
            batch_size=self.workload.batch_size or few_step.BATCH,
        )

    def judge(self, steps: int) -> None:
        """Train the judge and test it on held-out renders."""
        scenes, pictures = self._judge_scenes()
        autoencoder = self._autoencoder().requires_grad_(False)
        autoencoder.set_attn_processor(AttnProcessor())
        state = self.work / "judge.safetensors"
        judge.train(
            scenes,
            pictures,
            state,
            steps=steps,
            seed=self.seed + 30,
            vae=autoencoder,
            batch_size=self.workload.batch_size or judge.BATCH,
        )
        judge.save(state, self.workload.judge)
        tests, renders = native_scenes(self.workload.judge_tests, held_out=True)
        trained = judge.load(self.workload.judge)
        for name, share in judge.accuracy(trained, tests, renders).items():
            print(f"judge {name:12} {share:.4f}")

    def reader(self, steps: int) -> None:
        """Train the reader and test it on held-out renders."""
        autoencoder = self._autoencoder().requires_grad_(False)
        autoencoder.set_attn_processor(AttnProcessor())
        state = self.work / "reader.safetensors"
        scenes, pictures = rendered(reader.scene_of, self.workload.reader_scenes)
        reader.train(
            scenes,
            pictures,
            state,
            steps=steps,
            seed=self.seed + 70,
            vae=autoencoder,
            batch_size=self.workload.batch_size or reader.BATCH,
        )
        reader.save(state, self.workload.reader)
        tests, renders = rendered(reader.held_out_scene, self.workload.reader_tests)
        reading = reader.load(self.workload.reader).read(renders)
        print(f"reader IoU {overlap(reading, tests).mean():.4f}")
        print(f"reader colors {colored(reading, tests):.4f}")
        right = [styled(reading, test.style)[i] for i, test in enumerate(tests)]
        print(f"reader styles {np.mean(right):.4f}")

    def _judge_scenes(self) -> tuple[list[Scene], NDArray[np.uint8]]:
        return native_scenes(self.workload.judge_scenes, held_out=False)

    def export(self, out: Path) -> None:
        """Write the averaged weights as a diffusers folder."""
        autoencoder = self._autoencoder()
        factors = preview_factors(autoencoder, self._vae_scenes()[: self.workload.folded])
        export(out, self._painter(), autoencoder, factors)
        for kind, network in (("inpaint", inpaint.build()), ("refiner", refiner.build())):
            state = self.work / f"{kind}.safetensors"
            if state.exists():
                network.load_state_dict(averaged_weights(state))
                export_second(out.with_name(f"{out.name}-{kind}"), kind, network)
        if (state := self.work / "tiny-decoder.safetensors").exists():
            folder = out.with_name(f"{out.name}-decoder")
            folder.mkdir(exist_ok=True)
            tiny_decoder.export(state, folder / "tiny.safetensors")
        if (state := self.work / "few-step.safetensors").exists():
            folder = out.with_name(f"{out.name}-lora")
            folder.mkdir(exist_ok=True)
            few_step.export(state, folder / "few-step.safetensors")
        for kind in control.ALL:
            state = self.work / f"{kind}.safetensors"
            if state.exists():
                folder = out.with_name(f"{out.name}-control")
                folder.mkdir(exist_ok=True)
                name = control.NAMES.get(kind, kind)
                control.export(kind, state, self._painter().unet, folder / f"{name}.safetensors")
        for kind in concepts.CONCEPTS:
            state = self.work / f"{kind}.safetensors"
            if state.exists():
                what = "lora" if kind in concepts.LORAS else "embedding"
                folder = out.with_name(f"{out.name}-{what}")
                folder.mkdir(exist_ok=True)
                if what == "lora":
                    lora.export(state, folder / f"{kind}.safetensors", kind)
                else:
                    word.export(state, folder / f"{kind}.safetensors")


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of one module of a diffusers folder, in fp32."""
    (path,) = folder.glob("*.safetensors")
    return {key: value.float() for key, value in read_tensors(path).items()}


@torch.no_grad()
def preview_factors(autoencoder: AutoencoderKL, pictures: NDArray[np.uint8]) -> PreviewFactors:
    """Least squares from scaled latents to the picture at an eighth of its size, in −1..1."""
    rows: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    for start in range(0, len(pictures), 20):
        x = vae.to_tensor(pictures[start : start + 20])
        latents = vae.encode(autoencoder, x).mean * vae.scaling(autoencoder)
        rows.append(latents.permute(0, 2, 3, 1).reshape(-1, 4))
        targets.append(torch.nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1).reshape(-1, 3))
    known = torch.cat(rows)
    known = torch.cat([known, torch.ones(len(known), 1)], 1)
    solution = torch.linalg.lstsq(known, torch.cat(targets)).solution
    return PreviewFactors(solution[:4].tolist(), solution[4].tolist())


def main(arguments: Sequence[str] | None = None, workload: Workload = FULL_WORKLOAD) -> None:
    """Run a stage. By default the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m miniature", description=__doc__)
    parser.add_argument("stage", choices=["make", "adopt", *MEASURES, *STAGES])
    parser.add_argument("--out", type=Path, default=Path("build/miniature/export"))
    parser.add_argument("--work", type=Path, default=Path("build/miniature"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--text-steps", type=int, default=2000)
    parser.add_argument("--unet-steps", type=int, default=8000)
    parser.add_argument("--unet-rate", type=float, default=unet.RATE)
    parser.add_argument("--keep-text", action="store_true", help="unet: leave the text encoders")
    parser.add_argument("--compile", action="store_true", help="unet: needs a C++ compiler")
    parser.add_argument("--inpaint-steps", type=int, default=13_000)
    parser.add_argument("--refiner-steps", type=int, default=4500)
    parser.add_argument("--kinds", default=",".join(control.ALL), help="control: which nets")
    parser.add_argument("--control-steps", type=int, default=10_000)
    parser.add_argument("--concepts", default=",".join(concepts.CONCEPTS), help="which of them")
    parser.add_argument("--concepts-steps", type=int, default=1500)
    parser.add_argument("--few-step-steps", type=int, default=1500)
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--tiny-decoder-steps", type=int, default=4000)
    parser.add_argument("--judge-steps", type=int, default=6000)
    parser.add_argument("--reader-steps", type=int, default=1500)
    parser.add_argument("--model", default="miniature", help="a folder; measure: or a name")
    parser.add_argument("--count", type=int, default=300, help="measure: held-out prompts")
    parser.add_argument("--sweep", type=int, default=48, help="measure: sources of the sweep")
    parser.add_argument(
        "--nets",
        type=Path,
        default=Path("src/overpaint/data/miniature-control"),
        help="measure-control: their folder",
    )
    parser.add_argument("--tiled", type=int, default=512, help="measure-masks: pixels of a side")
    parser.add_argument("--guidance", type=float, default=5.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    workshop = Workshop(options.work, options.seed, workload)
    if options.stage == "adopt":
        workshop.adopt(Path(options.model))
        return
    if options.stage == "measure":
        from miniature.measure import report

        report(
            options.model,
            judge.load(workload.judge),
            options.out,
            count=options.count,
            sweep_count=options.sweep,
            guidance=options.guidance,
        )
        return
    if options.stage in ("measure-presets", "measure-dtypes"):
        from miniature import measure_variants

        is_preset = options.stage == "measure-presets"
        make = measure_variants.make_presets if is_preset else measure_variants.make_dtypes
        variants, reading = make(options.model), judge.load(workload.judge)
        measure_variants.report(variants, reading, options.out, count=options.count)
        return
    if options.stage == "measure-masks":
        from miniature.measure_masks import report as report_masks

        names = [f"{options.model}{end}" for end in ("", "-inpaint", "-refiner")]
        report_masks(
            names,
            judge.load(workload.judge),
            options.out,
            count=options.count,
            tiled=options.tiled,
        )
        return
    if options.stage == "measure-control":
        from miniature.measure_control import report as report_control

        report_control(
            options.model,
            options.nets,
            reader.load(workload.reader),
            options.out,
            count=options.count,
        )
        return
    if options.stage == "measure-concepts":
        from miniature.measure_concepts import report as report_concepts

        folders = tuple(options.nets.with_name(f"miniature-{k}") for k in ("lora", "embedding"))
        report_concepts(
            options.model, folders, reader.load(workload.reader), options.out, options.count
        )
        return
    stages = {
        "render": workshop.render,
        "vae": lambda: workshop.vae(options.vae_steps),
        "encode": workshop.encode,
        "text": lambda: workshop.text(options.text_steps),
        "unet": lambda: workshop.unet(
            options.unet_steps, options.unet_rate, options.keep_text, options.compile
        ),
        "masks": workshop.masks,
        "inpaint": lambda: workshop.inpaint(options.inpaint_steps, options.compile),
        "refiner": lambda: workshop.refiner(options.refiner_steps),
        "hints": workshop.hints,
        "control": lambda: workshop.control(options.kinds.split(","), options.control_steps),
        "concepts": lambda: workshop.concepts(options.concepts.split(","), options.concepts_steps),
        "trajectories": workshop.trajectories,
        "few-step": lambda: workshop.few_step(options.few_step_steps),
        "decoder": lambda: workshop.decoder(options.decoder_steps),
        "tiny-decoder": lambda: workshop.tiny_decoder(options.tiny_decoder_steps),
        "judge": lambda: workshop.judge(options.judge_steps),
        "reader": lambda: workshop.reader(options.reader_steps),
        "export": lambda: workshop.export(options.out),
    }
    for name in STAGES if options.stage == "make" else [options.stage]:
        print(f"== {name}", flush=True)
        stages[name]()


if __name__ == "__main__":
    main()
