"""The options that all painting commands share, beside the fields of a request."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from overpaint.cli.environment import MODELS_DIR_HELP


@dataclass(frozen=True)
class Common:
    """The options of all these commands, beside the fields of the request."""

    like: Annotated[
        Path | None,
        typer.Option(
            help="Picture that gives prompt and settings; other options override them.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write or overwrite (.png, .jpg or .webp; several are numbered from 0), "
            "folder/ for new files, or - for a PNG on stdout.",
            show_default="a new file in this folder",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model: a name, a folder, a .safetensors file or a hub id.",
            show_default="miniature",
        ),
    ] = None
    unet: Annotated[
        str | None,
        typer.Option(
            help="UNet in place of the model's own: a name, file or folder.", show_default=False
        ),
    ] = None
    text_encoder: Annotated[
        str | None,
        typer.Option(
            help="First text encoder (CLIP-L) in place of the model's own.", show_default=False
        ),
    ] = None
    text_encoder_2: Annotated[
        str | None,
        typer.Option(
            "--text-encoder-2",
            help="Second text encoder (CLIP-G) in place of the model's own.",
            show_default=False,
        ),
    ] = None
    models_dirs: Annotated[
        list[Path] | None,
        typer.Option("--models-dir", help=MODELS_DIR_HELP, show_default="OVERPAINT_MODELS_DIRS"),
    ] = None
    watermark: Annotated[
        bool,
        typer.Option("--watermark", help="Add SDXL's invisible watermark."),
    ] = False
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps or auto.")] = "auto"
    vram: Annotated[
        float | None,
        typer.Option(
            help="Memory of the device in GB. If the weights have no room, blocks of them are "
            "copied to it when they run.",
            min=0,
            show_default="the free memory",
        ),
    ] = None
    ram: Annotated[
        float | None,
        typer.Option(
            help="Memory of the process in GB on the CPU. If the weights have no room, blocks of "
            "them are read from their files when they run.",
            min=0,
            show_default="the free memory",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            help="Processor threads that compute. The default follows the affinity and the cgroup "
            "quota of the process.",
            min=1,
            max=1024,
            show_default="OMP_NUM_THREADS, or one for each usable core",
        ),
    ] = None
    dtype: Annotated[
        str, typer.Option(help="Number format of the weights: bf16, fp16, fp32, int8, fp8 or auto.")
    ] = "auto"
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON object for each picture."),
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")] = (
        False
    )
