"""What a workload section may say."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.spec import Rate, WorkloadSpec


@given(st.floats(min_value=0.01, max_value=100_000).map(lambda value: round(value, 2)))
def test_rates_are_absolute_or_a_share(value: float) -> None:
    assert Rate.parse(f"{value:.2f}/s") == Rate(per_s=value)
    if value <= 1000:
        assert Rate.parse(f" {value:.2f} % ") == Rate(share=value / 100)


@pytest.mark.parametrize("text", ["", "12", "0/s", "-3/s", "nan/s", "1e3/s", "12/m", "1001%", "100001/s", "٣/s"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Rate.parse(text)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"arrivals": "bursty"}, "'bursty' - at `$.arrivals`"),
        ({"rate": "fast"}, "rate: expected a positive rate such as 12/s or 60%, got 'fast'"),
        ({"rate_max": "fast"}, "rate_max: expected"),
        ({"rate_min": "9/s", "rate_max": "3/s"}, "rate_min: 9/s is more than rate_max, 3/s"),
        ({"prompt_tokens": [9, 3]}, "prompt_tokens: expected [least, most], got [9, 3]"),
        ({"output_tokens": [0, 3]}, "at `$.output_tokens[0]`"),
        ({"sessions": 0}, "at `$.sessions`"),
        ({"session": 1}, "unknown field `session`"),
    ],
)
def test_a_wrong_section_names_its_field(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(wrong, WorkloadSpec)
    assert complaint in str(refused.value)
