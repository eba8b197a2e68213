"""Whether one order of calls, each taking effect between its start and its end, explains them all.

Just-in-time linearization: Wing and Gong's search in the form of G. Lowe, "Testing for
linearizability" (2017), as Knossos and Porcupine do it. It goes through the starts and ends in
order of time, with the set of all configurations that could be: a state, and how far each call has
come that has not returned. Equal ones are merged. When a call returns, only those remain in which
it has taken effect with the outcome that was recorded; if there is none, there is no such order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from tests.history.history import Call
from tests.history.violation import Violation, around

CONFIGURATIONS_MAX: Final = 100_000
"""Looked at for one return. A history that needs more is not accepted."""

Progress = tuple[str, ...]
"""What a call that takes several steps has found on its way; at first nothing."""

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """What calls do, one after the other."""

    def first(self) -> S:
        """Return the state before the first call."""
        ...

    def steps(
        self, state: S, call: Call, progress: Progress
    ) -> Iterable[tuple[S, Progress | None]]:
        """Return what one more step of a call can lead to; None: it is done, as it was recorded.

        Most calls have one step. One that is no atomic action has more: each name of a path is
        looked up at a moment of its own. Nothing: it cannot get to what was recorded from here.
        """
        ...


class _Configuration(NamedTuple):
    """One way in which all could have come so far."""

    state: Hashable
    pending: frozenset[tuple[int, Progress | None]]
    """The calls that have not returned, by index, and how far each is; None: took effect."""


def linearize(
    calls: Sequence[Call], model: Model[S], configurations_max: int = CONFIGURATIONS_MAX
) -> Violation | None:
    """Return None if an order explains all calls, else the call at whose return none is left."""
    configurations = {_Configuration(model.first(), frozenset())}
    for index, is_return in _events(calls):
        if not is_return:
            configurations = {
                _Configuration(each.state, each.pending | {(index, ())}) for each in configurations
            }
            continue
        try:
            configurations = _returned(configurations, index, calls, model, configurations_max)
        except _TooManyError:
            reason = f"undecided: there are more than {configurations_max} ways to look at"
        else:
            if configurations:
                continue
            reason = "no order of the calls explains this outcome"
        return Violation(calls[index], reason, around(calls[index], calls))
    return None


class _TooManyError(Exception):
    """The search was given up."""


def _events(calls: Sequence[Call]) -> Iterator[tuple[int, bool]]:
    """Yield the index of each call twice, at its start and at its return, in order of time.

    Of one moment the starts come first: then the calls overlap, which allows more orders.
    """
    moments = [(call.start_ns, False, index) for index, call in enumerate(calls)]
    moments += [(call.end_ns, True, index) for index, call in enumerate(calls)]
    for _, is_return, index in sorted(moments):
        yield index, is_return


def _returned(
    configurations: set[_Configuration],
    index: int,
    calls: Sequence[Call],
    model: Model[S],
    configurations_max: int,
) -> set[_Configuration]:
    """Return the configurations in which a call has taken effect, without it.

    Others take effect before it only as far as that helps; what they need not do yet, they can
    still do later.
    """
    done = set()
    seen = set(configurations)
    waiting = list(configurations)
    while waiting:
        configuration = waiting.pop()
        if (index, None) in configuration.pending:
            pending = configuration.pending - {(index, None)}
            done.add(_Configuration(configuration.state, pending))
            continue
        for following in _following(configuration, calls, model):
            if following not in seen:
                if len(seen) >= configurations_max:
                    raise _TooManyError
                seen.add(following)
                waiting.append(following)
    return done


def _following(
    configuration: _Configuration, calls: Sequence[Call], model: Model[S]
) -> Iterator[_Configuration]:
    """Yield where one step of any pending call leads."""
    for index, progress in configuration.pending:
        if progress is None:
            continue
        others = configuration.pending - {(index, progress)}
        state: S = configuration.state  # type: ignore[assignment] # the model's own
        for after, further in model.steps(state, calls[index], progress):
            yield _Configuration(after, others | {(index, further)})
