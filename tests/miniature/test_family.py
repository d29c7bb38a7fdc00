import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from miniature import vae
from miniature.__main__ import Workshop
from miniature.common import Trainee, averaged_weights
from miniature.family import (
    LENGTH,
    Painter,
    PreviewFactors,
    Tokenizers,
    bpe,
    export,
    tokenizer,
)
from miniature.scenes import vocabulary


def test_every_known_word_is_one_token():
    made = tokenizer()
    assert [w for w in vocabulary() if len(made.tokenize(w)) != 1] == []


@pytest.mark.parametrize("text", ["zebra", "(red:1.2), 42!", "ünïcode 漢字", "🐟", "cats' house's"])
def test_any_text_has_tokens_of_its_own(text: str):
    made = tokenizer()
    ids = made(text).input_ids
    end = made.eos_token_id
    assert ids[-1] == end
    assert end not in ids[1:-1]
    assert str(made.decode(ids[1:-1])).replace(" ", "") == text.replace(" ", "")


def test_a_word_that_comes_later_does_not_split_an_earlier_one():
    vocab, merges = bpe(("cat", "car", "carpet", "art"))
    made = CLIPTokenizer(vocab=vocab, merges=cast(Any, merges))
    assert len(merges) == len(set(merges))
    assert all(len(made.tokenize(w)) == 1 for w in ("cat", "car", "carpet", "art"))


def test_the_pooled_text_is_read_at_the_end_token():
    painter = Painter().eval()
    ids = Tokenizers()(["a red house"])
    short = Tokenizers()(["a red house"], length=10)
    with torch.no_grad():
        context, pooled = painter.encode(*ids)
        _, pooled_short = painter.encode(*short)
    assert context.shape == (1, LENGTH, 160)
    assert pooled.shape == (1, 96)
    torch.testing.assert_close(pooled, pooled_short)


def test_the_exported_folder_is_read_back(tmp_path: Path):
    painter, autoencoder = Painter(3), vae.build(3)
    export(tmp_path, painter, autoencoder, PreviewFactors([[0.1, 0.2, 0.3]] * 4, [0.0] * 3))
    read, report = cast(Any, UNet2DConditionModel).from_pretrained(
        tmp_path / "unet", output_loading_info=True
    )
    assert report["missing_keys"] == report["unexpected_keys"] == []
    weight = painter.unet.conv_in.weight
    torch.testing.assert_close(read.conv_in.weight.float(), weight.half().float())
    encoder = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder_2")
    made = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer_2")
    assert encoder.config.eos_token_id == made.eos_token_id != 2
    assert made.pad_token_id == 0
    assert made.model_max_length == LENGTH
    text = "a watercolor of a red house, 3!"
    assert made(text, padding="max_length").input_ids == Tokenizers()([text])[1][0].tolist()
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config["latent_channels"] == 4
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float16}
    total = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert total <= 24_000_000
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is False


def test_a_weight_that_does_not_fit_fp16_is_refused(tmp_path: Path):
    painter = Painter()
    with torch.no_grad():
        painter.unet.conv_in.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"unet\.conv_in\.weight"):
        export(tmp_path, painter, vae.build(), PreviewFactors([], []))


def test_training_can_begin_from_an_exported_folder(tmp_path: Path):
    painter, autoencoder = Painter(3), vae.build(3)
    export(tmp_path / "out", painter, autoencoder, PreviewFactors([[0.0] * 3] * 4, [0.0] * 3))
    Workshop(tmp_path / "work", seed=1).adopt(tmp_path / "out")
    trainee = Trainee(Painter(4), rate=0.1)
    trainee.load(tmp_path / "work" / "unet.safetensors")
    assert trainee.step == 0
    for read, written in zip(trainee.averaged.parameters(), painter.parameters(), strict=True):
        torch.testing.assert_close(read, written.half().float())
    decoder = averaged_weights(tmp_path / "work" / "vae.safetensors")["decoder.conv_in.weight"]
    torch.testing.assert_close(decoder, autoencoder.decoder.conv_in.weight.half().float())
