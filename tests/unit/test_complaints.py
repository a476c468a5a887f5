from smithers.complaints import EVERY_S, Complaint


def test_a_complaint_is_said_at_once_and_then_once_a_minute() -> None:
    now = 0.0
    complaint = Complaint(lambda: now)
    assert complaint.may_be_said()
    assert not complaint.may_be_said()
    now = EVERY_S - 1
    assert not complaint.may_be_said()
    now = EVERY_S
    assert complaint.may_be_said()
    assert not complaint.may_be_said()


def test_a_complaint_may_be_said_more_seldom() -> None:
    now = 0.0
    complaint = Complaint(lambda: now, every_s=2 * EVERY_S)
    assert complaint.may_be_said()
    now = EVERY_S
    assert not complaint.may_be_said()
    now = 2 * EVERY_S
    assert complaint.may_be_said()


def test_complaints_of_two_places_do_not_silence_each_other() -> None:
    assert [Complaint().may_be_said(), Complaint().may_be_said()] == [True, True]
