"""One loop for both panels: a runner moves jobs by one step a call; a generation is one job, watched.

A `Runner` admits requests and advances any number of jobs together with one call of its network. A local generation is
a runner with one job, a server is the same runner with many: there is no second loop.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Job(Protocol):
    """What a runner holds for one request in progress."""

    is_done: bool


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
        """One network call: every job moves by one step, whatever step each is at. Steps in the order of the jobs."""
        ...

    def finish(self, job: JobT) -> ResultT:
        """The result of a job, done or stopped early; what the job held is released."""
        ...


class Generation(Generic[OwnStepT, OwnResultT]):
    """One request being made: iterate it for its steps, or ask for its `result()`.

    The request is admitted (and so checked) at once; work starts with the first step. Steps already made are in
    `steps`; iterating again starts from the first of them.
    """

    def __init__(self, runner: "Runner[RequestT, JobT, OwnStepT, OwnResultT]", request: RequestT) -> None:
        self.steps: list[OwnStepT] = []
        job = runner.admit(request)
        self._job: Job = job
        self._advance: Callable[[], OwnStepT] = lambda: runner.advance([job])[0]
        self._finish: Callable[[], OwnResultT] = lambda: runner.finish(job)
        self._result: OwnResultT | None = None

    def __iter__(self) -> Iterator[OwnStepT]:
        index = 0
        while True:
            if index == len(self.steps):
                if self._job.is_done or self._result is not None:
                    return
                self.steps.append(self._advance())
            yield self.steps[index]
            index += 1

    def result(self) -> OwnResultT:
        """Run to the end and return the result."""
        if self._result is None:
            for _ in self:
                pass
            self._result = self._finish()
        return self._result

    def stop(self) -> OwnResultT:
        """End here: the result of the steps made so far."""
        if self._result is None:
            self._result = self._finish()
        return self._result
