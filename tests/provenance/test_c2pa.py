"""Signed pictures say how they were made, to C2PA's own reader; their settings stay readable."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from overpaint.errors import OutputError, RequestError
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.provenance import metadata
from overpaint.provenance.c2pa import MEDIA_TYPES, SOURCE_TYPE_URL, Credentials
from overpaint.request import Request
from tests.provenance.certificates import write_certificate
from tests.provenance.test_metadata import recorded

PIXELS = Image.new("RGB", (64, 48), (200, 100, 50))


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return Credentials(*write_certificate(tmp_path))


def manifest(data: bytes, kind: str) -> dict[str, Any]:
    """What a file says, whose signature must be whole."""
    with c2pa.Reader(MEDIA_TYPES[kind], io.BytesIO(data)) as reader:
        assert reader.get_validation_state() == "Valid"
        found = json.loads(reader.json())
    return found["manifests"][found["active_manifest"]]


def actions(told: dict[str, Any]) -> list[tuple[str, str | None]]:
    [assertion] = [one for one in told["assertions"] if one["label"].startswith("c2pa.actions")]
    return [(a["action"], a.get("digitalSourceType")) for a in assertion["data"]["actions"]]


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_a_signed_picture_says_that_a_model_made_it(
    credentials: Credentials, kind: str, tmp_path: Path
) -> None:
    plain = metadata.encode_picture(PIXELS, kind, recorded(Request(prompt="a cup", seed=7)))
    signed = credentials.sign(plain, kind, None)
    told = manifest(signed, kind)
    assert told["claim_generator_info"][0]["name"] == "Overpaint"
    assert actions(told) == [("c2pa.created", f"{SOURCE_TYPE_URL}trainedAlgorithmicMedia")]
    assert "thumbnail" not in told
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(signed)
    assert metadata.read_settings(path).fields["prompt"] == "a cup"
    before, after = (np.asarray(codec.decode(Picture(data=data))) for data in (plain, signed))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_repainted_picture_says_so_and_does_not_hold_the_other(
    credentials: Credentials, form: str
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80), "teal").save(buffer, form)
    plain = metadata.encode_picture(PIXELS, "png", recorded(Request()))
    told = manifest(credentials.sign(plain, "png", Picture(data=buffer.getvalue())), "png")
    assert actions(told) == [
        ("c2pa.opened", None),
        ("c2pa.edited", f"{SOURCE_TYPE_URL}compositeWithTrainedAlgorithmicMedia"),
    ]
    [parent] = told["ingredients"]
    assert (parent["relationship"], parent["format"]) == ("parentOf", f"image/{form.lower()}")
    assert "thumbnail" not in parent


def test_what_was_signed_before_stays_in_the_history(credentials: Credentials) -> None:
    plain = metadata.encode_picture(PIXELS, "png", recorded(Request()))
    first = credentials.sign(plain, "png", None)
    second = credentials.sign(plain, "png", Picture(data=first))
    with c2pa.Reader("image/png", io.BytesIO(second)) as reader:
        assert len(json.loads(reader.json())["manifests"]) == 2


def test_a_changed_picture_is_not_valid(credentials: Credentials) -> None:
    plain = metadata.encode_picture(PIXELS, "png", recorded(Request(prompt="a cup")))
    signed = credentials.sign(plain, "png", None).replace(b"a cup", b"a dog")
    with c2pa.Reader("image/png", io.BytesIO(signed)) as reader:
        assert reader.get_validation_state() == "Invalid"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves_sign_too(tmp_path: Path, curve: Any) -> None:
    signed = Credentials(*write_certificate(tmp_path, curve)).sign(
        metadata.encode_picture(PIXELS, "png", recorded(Request())), "png", None
    )
    assert actions(manifest(signed, "png"))


def test_what_is_no_picture_cannot_be_signed(credentials: Credentials) -> None:
    with pytest.raises(OutputError, match="cannot be signed by C2PA"):
        credentials.sign(b"no picture", "png", None)


def test_what_cannot_sign_is_refused(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = write_certificate(tmp_path / "other")
    with pytest.raises(RequestError, match="cannot sign"):
        Credentials(chain, other)
    with pytest.raises(RequestError, match="cannot sign"):
        Credentials(key, key)
    with pytest.raises(RequestError, match="is not a private key in PEM"):
        Credentials(chain, chain)
    with pytest.raises(RequestError, match=r"gone\.pem cannot be read: No such file"):
        Credentials(chain, tmp_path / "gone.pem")
    small = write_certificate(tmp_path, ec.SECP224R1())
    with pytest.raises(RequestError, match="C2PA signs with EC"):
        Credentials(*small)


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *others: Any, **named: Any) -> Any:
        if name == "c2pa":
            raise ImportError("no module named c2pa")
        return imported(name, *others, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"pip install overpaint\[c2pa\]"):
        Credentials(tmp_path / "a", tmp_path / "b")
