from pathlib import Path

import pytest
import torch

from overpaint.models import devices, doctor
from overpaint.models.doctor import DeviceReport, inspect_machine
from tests.tiny import tiny_folder, tiny_model

CPU = torch.device("cpu")


def test_report_lists_devices_and_fitting_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def describe(device: torch.device) -> DeviceReport:
        return DeviceReport("cpu", "a small one", 8 * 10**9, 4 * 10**9)

    monkeypatch.setattr(devices, "emulates_bf16", lambda device: False)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(doctor, "list_devices", lambda: [CPU])
    monkeypatch.setattr(doctor, "_describe", describe)
    folder = str(tiny_folder(tmp_path / "tiny"))
    found = inspect_machine(folder)
    needs = {need.model: need for need in found.needs}
    assert (needs["sdxl"].dtype, needs["sdxl"].fits) == ("bfloat16", False)
    assert needs["sdxl"].weights == pytest.approx(6.94e9, rel=0.01)
    assert (needs[folder].dtype, needs[folder].side, needs[folder].fits) == ("float32", 128, True)
    model = tiny_model()
    modules = (model.unet, model.vae, *(encoder.model for encoder in model.text_encoders))
    assert needs[folder].weights == 4 * sum(p.numel() for m in modules for p in m.parameters())
    text = "\n".join(found.lines())
    assert f"torch {torch.__version__}" in text
    assert "auto takes: cpu" in text
    assert "6.94 GB of weights and about 4.30 GB to work at 1024 x 1024: DOES NOT FIT" in text


def test_report_of_this_machine_is_complete():
    device = inspect_machine().devices[-1]
    assert device.name == "cpu"
    assert device.total > 10**8
    assert 0 < device.free <= device.total


def test_report_notes_missing_model(tmp_path: Path):
    notes = inspect_machine(str(tmp_path / "none")).notes
    assert any("There is no file or folder" in note for note in notes)
