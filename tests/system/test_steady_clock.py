"""A clock for ages, which a jump of the wall clock does not mislead."""

from overpaint.system.steady_clock import SteadyClock

YEAR_S = 365 * 86_400.0
WINDOW_S = 100.0


class Time:
    """A monotonic clock, and a wall clock that may jump."""

    def __init__(self) -> None:
        self.elapsed = 7.5
        self.wall = 1_700_000_000.5
        self.clock = SteadyClock(WINDOW_S, lambda: self.elapsed)

    def read(self, seconds: float = 0.0) -> float:
        self.elapsed += seconds
        self.wall += seconds
        return self.clock.read(self.wall)


def test_steady_clock_without_a_jump_shows_the_wall_time_to_a_second() -> None:
    time = Time()
    for _ in range(50):
        shown = time.read(9.7)
        assert 0 <= time.wall - shown < 1


def test_steady_clock_follows_a_jump_ahead_once_its_window_has_passed() -> None:
    time = Time()
    written = time.read()
    time.wall += 10 * YEAR_S
    for elapsed in range(10, 100, 10):
        assert time.read(10.0) - written <= elapsed
    time.read(10.0)
    assert time.read(10.0) - written > 9 * YEAR_S


def test_steady_clock_follows_a_jump_back_at_once_and_ages_nothing_after_the_return() -> None:
    time = Time()
    time.read()
    time.wall -= 10 * YEAR_S
    written = time.read(1.0)
    time.wall += 10 * YEAR_S
    assert time.read(50.0) - written <= 51


def test_steady_clock_keeps_few_readings() -> None:
    time = Time()
    for _ in range(5_000):
        time.wall += 1e-4  # a clock that is steered
        time.read(0.01)
    assert len(time.clock._offsets) <= 3  # pyright: ignore[reportPrivateUsage]
