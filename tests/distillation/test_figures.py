"""What a short prompt keeps of its teacher, where a figure has a rule of its own."""

from __future__ import annotations

from softprompt.distillation.figures import _numbers_kept


def test_numbers_are_kept_where_all_of_an_answers_stand_in_the_other() -> None:
    wanted = ["Open from 16:00 to 19:00.", "A deposit of 20 pounds.", "1,644 days, 2.5 hours.", "Never."]
    said = ["16:00, until 19:00", "20 pounds, or 10", "1,644 days, 25 hours", "On 3 days."]
    found = _numbers_kept(said, wanted)
    assert found is not None
    assert found.value == 2 / 3
    assert _numbers_kept(["12"], ["Twelve"]) is None
