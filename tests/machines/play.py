"""How often and how long machines play: the same plays at every run of the tests, many others in torture."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

TORTURE = "torture"
_USUAL = 100

settings.register_profile(TORTURE, max_examples=30 * _USUAL)


def play(machine: type[RuleBasedStateMachine], examples: int, steps: int = 40) -> None:
    """Raises what the machine finds, with the shortest play that shows it."""
    many = settings().max_examples // _USUAL
    _run(
        machine,
        settings(
            max_examples=examples * many,
            stateful_step_count=steps,
            derandomize=many == 1,
            deadline=None,
            database=None,
            print_blob=True,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def finds(machine: type[RuleBasedStateMachine], examples: int, steps: int = 40) -> str:
    """What the machine says of a planted mistake; fails if it sees none."""
    try:
        _run(
            machine,
            settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=True,
                deadline=None,
                database=None,
                phases=(Phase.generate,),  # that it is found is enough
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception as found:
        return f"{type(found).__name__}: {found}"
    raise AssertionError(f"the machine lived through {examples} plays and saw nothing")


def _run(machine: type[RuleBasedStateMachine], how: settings) -> None:
    run_state_machine_as_test(machine, settings=how)
