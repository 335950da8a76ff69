"""How a run's end becomes the command's."""

import dagster as dg

from em_pipeline.cli.launch import _failure, _is_interrupt
from em_pipeline.domain.errors import EmError
from em_pipeline.domain.spec import DatasetSpec

SPEC = DatasetSpec(dataset_id="files-mine", source="files", accession="mine")


def ended_by(error: BaseException) -> dg.ExecuteInProcessResult:
    @dg.op
    def step() -> None:
        raise error

    @dg.job
    def steps() -> None:
        step()

    return steps.execute_in_process(raise_on_error=False)


def test_an_interrupt_between_dagster_s_own_lines_is_an_interrupt() -> None:
    result = ended_by(dg.DagsterExecutionInterruptedError())
    assert isinstance(_failure(result, SPEC), KeyboardInterrupt)
    ends = [event for event in result.all_events if event.is_step_failure or event.is_job_failure]
    assert [_is_interrupt(event) for event in ends] == [True, True]


def test_any_other_error_of_a_step_is_told() -> None:
    told = _failure(ended_by(ValueError("odd")), SPEC)
    assert isinstance(told, EmError)
    assert "step" in told.tried
