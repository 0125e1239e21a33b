"""Faults that tests inject: only where they are allowed."""

import pytest

from omniserve_agent.engine.faults import FaultSettingError, iteration_delay


def test_no_fault_unless_asked_for():
    assert iteration_delay({}) is None
    assert iteration_delay({"OMNISERVE_TESTING": "1"}) is None


def test_a_fault_outside_tests_is_refused(tmp_path):
    with pytest.raises(FaultSettingError, match="unset it, or set OMNISERVE_TESTING=1"):
        iteration_delay({"OMNISERVE_TEST_ITERATION_DELAY_FILE": str(tmp_path / "delay")})


def test_the_delay_follows_the_file(tmp_path):
    path = tmp_path / "delay"
    delay = iteration_delay(
        {"OMNISERVE_TEST_ITERATION_DELAY_FILE": str(path), "OMNISERVE_TESTING": "1"}
    )
    assert delay() == 0.0
    path.write_text("250\n")
    assert delay() == 0.25
    path.write_text("")
    assert delay() == 0.0
    path.write_text("60001")
    with pytest.raises(FaultSettingError, match="write 0 to 60000 milliseconds"):
        delay()
