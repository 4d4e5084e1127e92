"""Any calls and any faults in any order, through the public API and with a real Postgres."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.memory_machine import Ground, machine_on, on_ground

EXAMPLES = 12
STEPS = 30


def test_two_processes_keep_every_promise_whatever_is_called_and_whatever_fails() -> None:
    def drive(ground: Ground) -> None:
        run_state_machine_as_test(
            machine_on(ground),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),
                print_blob=True,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            ),
        )
        assert ground.acked > EXAMPLES * STEPS / 10

    on_ground(drive)
