from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import save_file

from overpaint.diffusion import latents
from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.addons import AddonLoader
from overpaint.models.library.library import Library
from overpaint.models.named_models import resolve_decoder
from overpaint.models.separate_parts import PartPath
from overpaint.models.tiny_decoder import load_tiny_decoder
from overpaint.painter import Painter, load
from overpaint.request import Request
from tests.tiny import tiny_model

Layout = Literal["folder", "diffusers", "original"]


def make_autoencoder(sizes: int = 4, channels: int = 4, width: int = 8) -> AutoencoderTiny:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "encoder_block_out_channels": (width,) * sizes,
        "decoder_block_out_channels": (width,) * sizes,
        "num_encoder_blocks": (1,) * sizes,
        "num_decoder_blocks": (3, *(2,) * (sizes - 2), 1),
        "latent_channels": channels,
    }
    return AutoencoderTiny(**arguments).eval()


def write(path: Path, autoencoder: AutoencoderTiny, layout: Layout) -> Path:
    """Write a decoder as diffusers does, or as the authors of TAESD do."""
    if layout == "folder":
        autoencoder.save_pretrained(path)
        return path
    tensors = autoencoder.decoder.state_dict(prefix="decoder.")
    if layout == "original":
        split = {key: key.removeprefix("decoder.layers.").split(".", 1) for key in tensors}
        names = {key: f"{int(layer) + 1}.{rest}" for key, (layer, rest) in split.items()}
        tensors = {names[key]: tensor for key, tensor in tensors.items()}
    file = path.with_suffix(".safetensors")
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("layout", ["folder", "diffusers", "original"])
def test_decoder_makes_the_pixels_of_diffusers(tmp_path: Path, layout: Layout) -> None:
    autoencoder = make_autoencoder()
    path = write(tmp_path / "taesdxl", autoencoder, layout)
    decoder = load_tiny_decoder(PartPath(path, "taesdxl"), tiny_model())
    latent = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = autoencoder.decode(latent, return_dict=False)[0].clamp(-1, 1)
        torch.testing.assert_close(decoder.decode(latent), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"sizes": 3}, {"channels": 16}])
def test_decoder_for_other_latents_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    path = write(tmp_path / "other", make_autoencoder(**changes), "original")
    with pytest.raises(CheckpointError, match="Choose a decoder for SDXL"):
        load_tiny_decoder(PartPath(path, "other"), tiny_model())


def test_file_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    save_file({"1.bias": torch.zeros(3)}, tmp_path / "some.safetensors")
    with pytest.raises(CheckpointError, match=r"not a tiny decoder; its keys are 1\.bias"):
        load_tiny_decoder(PartPath(tmp_path / "some.safetensors", "some"), tiny_model())


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_added_decoder_is_found_by_its_name(tmp_path: Path, layout: Layout) -> None:
    file = write(tmp_path / "taesdxl_decoder", make_autoencoder(), layout)
    library = Library(tmp_path / "home")
    assert library.add(file).kind == "decoder"
    for name in ("taesdxl", "taesdxl_decoder"):
        assert resolve_decoder(name, library, download=False).name == "taesdxl_decoder"
    with pytest.raises(ModelNotFoundError, match="Unknown decoder 'taesd'"):
        resolve_decoder("taesd", library, download=False)


def test_decoder_that_is_not_here_makes_no_preview(tmp_path: Path) -> None:
    model = load("miniature").model
    model.family = replace(model.family, tiny_decoder="taesdxl")
    loader = AddonLoader(model, Library(tmp_path))
    assert loader.find_preview_decoder() is None
    with pytest.raises(ModelNotFoundError, match="taesdxl"):
        loader.load_decoder("tiny")


def test_request_with_a_decoder_is_decoded_by_it(tmp_path: Path) -> None:
    path = write(tmp_path / "mine", make_autoencoder(), "original")
    model = tiny_model()
    painter = Painter(model, Library(tmp_path, paths=True))
    fields: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 1, "seed": 1}
    whole = painter.run(Request(**fields), progress=False)
    quick = painter.run(Request(**fields, decoder=str(path)), progress=False)
    assert quick.images[0].tobytes() != whole.images[0].tobytes()
    assert quick.metadata[0]["decoder_sha256"]
    assert "decoder_sha256" not in whole.metadata[0]
    assert quick.metadata[0]["request"]["decoder"] == str(path)


def test_large_picture_is_decoded_in_windows(tmp_path: Path) -> None:
    """A tiny decoder has no statistics over the picture, so one pass has all that it needs."""
    autoencoder = make_autoencoder()
    model = tiny_model()
    file = PartPath(write(tmp_path / "taesdxl", autoencoder, "original"), "taesdxl")
    decoder = load_tiny_decoder(file, model)
    cells = 2 * model.native_size // model.vae_factor + 8
    latent = torch.randn(1, 4, cells, cells, generator=torch.Generator().manual_seed(1))
    picture = latents.decode_tiny(model, decoder, latent)
    with torch.inference_mode():
        whole = latents.codec.from_array(decoder.decode(latent)[0].numpy())
    differences = [abs(a - b) for a, b in zip(picture.tobytes(), whole.tobytes(), strict=True)]
    assert max(differences) <= 40
    assert sum(differences) / len(differences) < 0.5
