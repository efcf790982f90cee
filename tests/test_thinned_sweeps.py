"""What the mark ``sweep`` leaves to ``-m slow``."""

import pytest

CASES = 7


@pytest.mark.sweep(3)
@pytest.mark.parametrize("case", range(CASES))
def test_each_case_is_in_one_of_the_two(case, request):
    expected = {"": 3, "slow": CASES - 3, "not slow or thinned": CASES}
    chosen = request.config.option.markexpr
    if request.config.option.keyword or chosen not in expected:
        pytest.skip(f"-k or -m {chosen!r} chooses otherwise")
    here = [item for item in request.session.items if item.function is request.function]
    if len(here) == 1:
        pytest.skip("asked for alone")
    assert len(here) == expected[chosen]
