"""What the benchmark makes of the times at which bytes arrived, on sequences whose answers are known."""

import pytest

from tests.bench.arrivals import Arrivals


def steady(seconds: int, per_s: int, size: int) -> Arrivals:
    return Arrivals.of([(number / per_s, size) for number in range(seconds * per_s)])


def test_a_steady_stream_has_one_rate_and_no_pause() -> None:
    stream = steady(12, 100, 10)

    assert list(stream.rates(10.0)) == pytest.approx([1000] * len(list(stream.rates(10.0))), abs=1)
    assert len(list(stream.rates(10.0))) == pytest.approx(200, abs=1)
    assert stream.most_bytes(0.1) == pytest.approx(100, abs=10)
    assert stream.longest_pause_s() == pytest.approx(0.01)


def test_a_pause_and_a_burst_are_found_wherever_they_are() -> None:
    noted = [(number / 100, 10) for number in range(1200) if not 500 <= number < 530] + [(7.005, 300)]
    stream = Arrivals.of(noted)

    assert stream.longest_pause_s() == pytest.approx(0.31)
    assert stream.most_bytes(0.1) >= 390
    assert min(stream.rates(10.0)) == pytest.approx(1000, abs=1)
    assert steady(12, 100, 10).most_bytes(0.1) <= 110


def test_what_the_machine_stood_still_is_no_pause_of_the_program_s() -> None:
    stream = Arrivals.of([(0.0, 1), (0.3, 1), (0.4, 1)])

    assert stream.longest_pause_s([(0.05, 0.25)]) == pytest.approx(0.1)
    assert stream.longest_pause_s([(0.35, 0.9)]) == pytest.approx(0.3)


def test_what_arrived_between_two_times_can_be_looked_at_alone() -> None:
    stream = steady(4, 10, 1)

    assert len(stream.between(1.0, 2.0).at_s) == 10
    assert stream.between(1.0, 2.0).lasted_s == pytest.approx(0.9)
    assert list(stream.rates(10.0)) == []
