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


def test_tokenizer_gives_one_token_for_each_known_word():
    clip_tokenizer = tokenizer()
    assert [w for w in vocabulary() if len(clip_tokenizer.tokenize(w)) != 1] == []


@pytest.mark.parametrize("text", ["zebra", "(red:1.2), 42!", "ünïcode 漢字", "🐟", "cats' house's"])
def test_tokenizer_decodes_any_text_to_itself(text: str):
    clip_tokenizer = tokenizer()
    ids = clip_tokenizer(text).input_ids
    end = clip_tokenizer.eos_token_id
    assert ids[-1] == end
    assert end not in ids[1:-1]
    assert str(clip_tokenizer.decode(ids[1:-1])).replace(" ", "") == text.replace(" ", "")


def test_bpe_of_words_with_shared_parts_has_one_token_for_each():
    vocab, merges = bpe(("cat", "car", "carpet", "art"))
    clip_tokenizer = CLIPTokenizer(vocab=vocab, merges=cast(Any, merges))
    assert len(merges) == len(set(merges))
    assert all(len(clip_tokenizer.tokenize(w)) == 1 for w in ("cat", "car", "carpet", "art"))


def test_pooled_text_does_not_depend_on_the_padding():
    painter = Painter().eval()
    ids = Tokenizers()(["a red house"])
    short = Tokenizers()(["a red house"], length=10)
    with torch.no_grad():
        context, pooled = painter.encode(*ids)
        _, pooled_short = painter.encode(*short)
    assert context.shape == (1, LENGTH, 160)
    assert pooled.shape == (1, 96)
    torch.testing.assert_close(pooled, pooled_short)


def test_exported_folder_is_read_by_diffusers_and_transformers(tmp_path: Path):
    painter, autoencoder = Painter(3), vae.build(3)
    export(tmp_path, painter, autoencoder, PreviewFactors([[0.1, 0.2, 0.3]] * 4, [0.0] * 3))
    read, report = cast(Any, UNet2DConditionModel).from_pretrained(
        tmp_path / "unet", output_loading_info=True
    )
    assert report["missing_keys"] == report["unexpected_keys"] == []
    weight = painter.unet.conv_in.weight
    torch.testing.assert_close(read.conv_in.weight.float(), weight.half().float())
    encoder = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder_2")
    clip_tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer_2")
    assert encoder.config.eos_token_id == clip_tokenizer.eos_token_id != 2
    assert clip_tokenizer.pad_token_id == 0
    assert clip_tokenizer.model_max_length == LENGTH
    text = "a watercolor of a red house, 3!"
    assert (
        clip_tokenizer(text, padding="max_length").input_ids == Tokenizers()([text])[1][0].tolist()
    )
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config["latent_channels"] == 4
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float16}
    total = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert total <= 24_000_000
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is False


def test_export_of_weight_beyond_fp16_raises(tmp_path: Path):
    painter = Painter()
    with torch.no_grad():
        painter.unet.conv_in.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"unet\.conv_in\.weight"):
        export(tmp_path, painter, vae.build(), PreviewFactors([], []))


def test_training_from_an_exported_folder_starts_with_its_weights(tmp_path: Path):
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
