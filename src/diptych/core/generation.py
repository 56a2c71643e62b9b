"""One loop for both panels: a runner moves jobs by one step a call; a generation is a job or several, watched.

A `Runner` admits requests and advances any number of jobs together with one call of its network. A local generation is
a runner with one job, a server is the same runner with many: there is no second loop.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Job(Protocol):
    """What a runner holds for one request in progress."""

    is_done: bool

    @property
    def is_ahead(self) -> bool:
        """Whether the next step is known already, so that it needs no call of the network."""
        ...


JobT = TypeVar("JobT", bound=Job)
RequestT = TypeVar("RequestT", contravariant=True)
StepT = TypeVar("StepT")
ResultT = TypeVar("ResultT", covariant=True)
OwnStepT = TypeVar("OwnStepT")
OwnResultT = TypeVar("OwnResultT")


class Runner(Protocol[RequestT, JobT, StepT, ResultT]):
    """A network with the state of the jobs it works on."""

    def admit(self, request: RequestT) -> JobT:
        """Check what only the model can check, reserve what the job needs. Raises ValueError before any work."""
        ...

    def advance(self, jobs: Sequence[JobT]) -> list[StepT]:
        """One network call at most: every job moves by one step, whatever step each is at. Steps in the order of the
        jobs. Who has many jobs moves those that are ahead by themselves: they need not wait for the others."""
        ...

    def finish(self, job: JobT) -> ResultT:
        """The result of a job, done or stopped early; what the job held is released."""
        ...


def next_to_move(jobs: Sequence[JobT]) -> list[JobT]:
    """The jobs to advance together: those whose steps are known, while there are any; else all that are not done."""
    going = [job for job in jobs if not job.is_done]
    return [job for job in going if job.is_ahead] or going


class Generation(Generic[OwnStepT, OwnResultT]):
    """What is being made: iterate it for its steps, or ask for its `result()`.

    The requests are admitted (and so checked) at once; work starts with the first step. Several requests are several
    samples of one: their jobs advance together until each is done, and the steps of one call come in the order of the
    requests. Steps already made are in `steps`; iterating again starts from the first of them.
    """

    def __init__(self, runner: "Runner[RequestT, JobT, OwnStepT, OwnResultT]", *requests: RequestT) -> None:
        self.steps: list[OwnStepT] = []
        jobs = [runner.admit(request) for request in requests]
        self._jobs: Sequence[Job] = jobs
        self._advance: Callable[[], list[OwnStepT]] = lambda: runner.advance(next_to_move(jobs))
        self._finish: Callable[[], list[OwnResultT]] = lambda: [runner.finish(job) for job in jobs]
        self._results: list[OwnResultT] | None = None

    def __iter__(self) -> Iterator[OwnStepT]:
        index = 0
        while True:
            if index == len(self.steps):
                if self._results is not None or all(job.is_done for job in self._jobs):
                    return
                self.steps += self._advance()
            yield self.steps[index]
            index += 1

    def results(self) -> list[OwnResultT]:
        """Run to the end and return the result of each request."""
        if self._results is None:
            for _ in self:
                pass
            self._results = self._finish()
        return self._results

    def result(self) -> OwnResultT:
        """Run to the end and return the result: the first, where there are several."""
        return self.results()[0]

    def stop(self) -> OwnResultT:
        """End here: the result of the steps made so far. From now on `results()` are those of all."""
        if self._results is None:
            self._results = self._finish()
        return self._results[0]
