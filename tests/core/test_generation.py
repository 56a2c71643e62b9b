"""A generation is one job of a runner, watched: nothing is made twice, nothing before it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from diptych.core.generation import Generation, next_to_move


@dataclass
class Countdown:
    left: int
    made: list[int] = field(default_factory=list)
    known: int = 0  # of the steps that are left

    @property
    def is_ahead(self) -> bool:
        return self.known > 0

    @property
    def is_done(self) -> bool:
        return self.left == 0


@dataclass
class Counter:
    """A runner whose network is subtraction; it keeps a log of what was asked of it."""

    calls: list[str] = field(default_factory=list)

    def admit(self, request: int) -> Countdown:
        self.calls.append("admit")
        if request < 0:
            raise ValueError(f"steps must be at least 0, not {request}")
        return Countdown(request)

    def advance(self, jobs: Sequence[Countdown]) -> list[int]:
        self.calls.append("advance")
        for job in jobs:
            job.left -= 1
            job.made.append(job.left)
        return [job.made[-1] for job in jobs]

    def finish(self, job: Countdown) -> list[int]:
        self.calls.append("finish")
        return list(job.made)


def test_a_request_is_checked_at_once_and_work_starts_with_the_first_step():
    with pytest.raises(ValueError, match="steps must be at least 0, not -1"):
        Generation(Counter(), -1)
    runner = Counter()
    generation = Generation(runner, 3)
    assert runner.calls == ["admit"]
    assert next(iter(generation)) == 2
    assert runner.calls == ["admit", "advance"]


def test_iterating_twice_makes_the_steps_once():
    runner = Counter()
    generation = Generation(runner, 3)
    assert list(generation) == list(generation) == generation.steps == [2, 1, 0]
    assert runner.calls.count("advance") == 3


def test_two_readers_at_once_see_the_same_steps():
    generation = Generation(Counter(), 4)
    assert list(zip(generation, generation, strict=True)) == [(3, 3), (2, 2), (1, 1), (0, 0)]


def test_result_runs_to_the_end_from_wherever_the_reader_stopped():
    runner = Counter()
    generation = Generation(runner, 4)
    for step in generation:
        if step == 2:
            break
    assert generation.result() == [3, 2, 1, 0]
    assert generation.steps == [3, 2, 1, 0]
    assert generation.result() is generation.result()
    assert runner.calls == ["admit"] + 4 * ["advance"] + ["finish"]


def test_stop_ends_here_with_what_there_is():
    runner = Counter()
    generation = Generation(runner, 4)
    reader = iter(generation)
    next(reader)
    assert generation.stop() == [3]
    assert list(reader) == []
    assert generation.result() == generation.stop() == [3]
    assert list(generation) == [3]
    assert runner.calls == ["admit", "advance", "finish"]


def test_a_job_without_steps_has_a_result():
    generation = Generation(Counter(), 0)
    assert list(generation) == []
    assert generation.result() == []


def test_many_generations_share_one_runner():
    runner = Counter()
    assert [Generation(runner, count).result() for count in (2, 1)] == [[1, 0], [0]]
    jobs = [runner.admit(count) for count in (2, 5)]
    assert runner.advance(jobs) == [1, 4]


def test_several_requests_advance_together_until_each_is_done():
    """Two, three and no steps: three calls, whose steps come in the order of the requests."""
    runner = Counter()
    generation = Generation(runner, 2, 3, 0)
    assert list(generation) == [1, 2, 0, 1, 0]
    assert generation.results() == [[1, 0], [2, 1, 0], []]
    assert generation.result() is generation.results()[0]
    assert runner.calls == 3 * ["admit"] + 3 * ["advance"] + 3 * ["finish"]


def test_stopping_ends_all_of_several():
    generation = Generation(Counter(), 2, 3)
    next(iter(generation))
    assert generation.stop() == [1]
    assert generation.results() == [[1], [2]]
    assert list(generation) == [1, 2]


def test_jobs_whose_steps_are_known_do_not_wait_for_the_others():
    jobs = [Countdown(5), Countdown(5, known=2), Countdown(0, known=1)]
    assert next_to_move(jobs) == [jobs[1]]
    jobs[1].known = 0
    assert next_to_move(jobs) == jobs[:2]
