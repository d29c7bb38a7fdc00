import pytest

from overpaint.errors import RequestError, did_you_mean
from overpaint.registry import PAIRS, SAMPLERS, SCHEDULES, resolve_sampler, resolve_schedule


@pytest.mark.parametrize("name", SAMPLERS)
def test_resolve_sampler_accepts_name_label_and_aliases_in_any_case(name: str):
    sampler = SAMPLERS[name]
    for spelling in (sampler.name, sampler.label, *sampler.aliases):
        for cased in (spelling, spelling.upper(), spelling.lower()):
            assert resolve_sampler(cased) == (name, None)
        assert resolve_sampler(f"{spelling} Karras") == (name, "karras")


@pytest.mark.parametrize("name", SCHEDULES)
def test_resolve_schedule_accepts_name_label_and_aliases_in_any_case(name: str):
    schedule = SCHEDULES[name]
    for spelling in (schedule.name, schedule.label, *schedule.aliases):
        assert resolve_schedule(spelling) == resolve_schedule(spelling.upper()) == name


@pytest.mark.parametrize(
    ("spelling", "meant"),
    [
        # Replicate's
        ("DDIM", ("ddim", None)),
        ("DPMSolverMultistep", ("dpmpp_2m", None)),
        ("HeunDiscrete", ("heun", None)),
        ("KarrasDPM", ("dpmpp_2m", "karras")),
        ("K_EULER_ANCESTRAL", ("euler_a", None)),
        ("K_EULER", ("euler", None)),
        ("PNDM", ("pndm", None)),
        # A1111's
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 3M SDE Exponential", ("dpmpp_3m_sde", "exponential")),
        ("Euler a", ("euler_a", None)),
        ("DPM++ 2M SGM Uniform", ("dpmpp_2m", "trailing")),
        # diffusers'
        ("EulerAncestralDiscreteScheduler", ("euler_a", None)),
        ("UniPCMultistepScheduler", ("unipc", None)),
        # ComfyUI's
        ("dpm_2_ancestral", ("dpm2_a", None)),
    ],
)
def test_resolve_sampler_accepts_names_of_other_programs(
    spelling: str, meant: tuple[str, str | None]
):
    assert resolve_sampler(spelling) == meant


def test_resolve_of_an_unknown_name_suggests_close_names():
    with pytest.raises(RequestError, match=r"'dpmp2m'\. Did you mean dpmpp_2m"):
        resolve_sampler("dpmp2m")
    with pytest.raises(RequestError, match=r"'karas'\. Did you mean karras"):
        resolve_schedule("karas")
    with pytest.raises(RequestError, match="'__class__'"):
        resolve_sampler("__class__")


def test_did_you_mean_without_a_close_name_lists_all_names():
    assert did_you_mean("zzzz", ["b", "a"]) == " Known: a, b."


def test_labels_of_samplers_and_schedules_are_distinct():
    for table in (SAMPLERS, SCHEDULES):
        assert len({named.label for named in table.values()}) == len(table)


def test_pairs_contain_only_known_samplers_and_schedules():
    assert all(s in SAMPLERS and schedule in SCHEDULES for s, schedule in PAIRS.values())
