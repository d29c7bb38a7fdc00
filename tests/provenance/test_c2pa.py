"""C2PA's own reader reads how signed pictures were made; their settings stay readable."""

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


def read_manifest(data: bytes, kind: str) -> dict[str, Any]:
    """Return the active manifest of a file, whose signature must be valid."""
    with c2pa.Reader(MEDIA_TYPES[kind], io.BytesIO(data)) as reader:
        assert reader.get_validation_state() == "Valid"
        store = json.loads(reader.json())
    return store["manifests"][store["active_manifest"]]


def actions(manifest: dict[str, Any]) -> list[tuple[str, str | None]]:
    [assertion] = [one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")]
    return [(a["action"], a.get("digitalSourceType")) for a in assertion["data"]["actions"]]


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_signed_picture_declares_a_trained_model_as_source(
    credentials: Credentials, kind: str, tmp_path: Path
) -> None:
    plain = metadata.encode_picture(PIXELS, kind, recorded(Request(prompt="a cup", seed=7)))
    signed = credentials.sign(plain, kind, None)
    manifest = read_manifest(signed, kind)
    assert manifest["claim_generator_info"][0]["name"] == "Overpaint"
    assert actions(manifest) == [("c2pa.created", f"{SOURCE_TYPE_URL}trainedAlgorithmicMedia")]
    assert "thumbnail" not in manifest
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(signed)
    assert metadata.read_settings(path).fields["prompt"] == "a cup"
    before, after = (np.asarray(codec.decode(Picture(data=data))) for data in (plain, signed))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_signed_edit_declares_its_source_without_thumbnail(
    credentials: Credentials, form: str
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80), "teal").save(buffer, form)
    plain = metadata.encode_picture(PIXELS, "png", recorded(Request()))
    manifest = read_manifest(credentials.sign(plain, "png", Picture(data=buffer.getvalue())), "png")
    assert actions(manifest) == [
        ("c2pa.opened", None),
        ("c2pa.edited", f"{SOURCE_TYPE_URL}compositeWithTrainedAlgorithmicMedia"),
    ]
    [parent] = manifest["ingredients"]
    assert (parent["relationship"], parent["format"]) == ("parentOf", f"image/{form.lower()}")
    assert "thumbnail" not in parent


def test_signed_edit_of_signed_picture_keeps_both_manifests(credentials: Credentials) -> None:
    plain = metadata.encode_picture(PIXELS, "png", recorded(Request()))
    first = credentials.sign(plain, "png", None)
    second = credentials.sign(plain, "png", Picture(data=first))
    with c2pa.Reader("image/png", io.BytesIO(second)) as reader:
        assert len(json.loads(reader.json())["manifests"]) == 2


def test_signed_picture_that_is_changed_is_invalid(credentials: Credentials) -> None:
    plain = metadata.encode_picture(PIXELS, "png", recorded(Request(prompt="a cup")))
    signed = credentials.sign(plain, "png", None).replace(b"a cup", b"a dog")
    with c2pa.Reader("image/png", io.BytesIO(signed)) as reader:
        assert reader.get_validation_state() == "Invalid"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_credentials_with_other_curves_sign(tmp_path: Path, curve: Any) -> None:
    signed = Credentials(*write_certificate(tmp_path, curve)).sign(
        metadata.encode_picture(PIXELS, "png", recorded(Request())), "png", None
    )
    assert actions(read_manifest(signed, "png"))


def test_sign_of_data_that_is_no_picture_raises(credentials: Credentials) -> None:
    with pytest.raises(OutputError, match="cannot be signed by C2PA"):
        credentials.sign(b"no picture", "png", None)


def test_credentials_that_cannot_sign_are_refused(tmp_path: Path) -> None:
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


def test_credentials_without_c2pa_package_name_the_install_command(
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
