"""What became of unrolls and gradients: summed over ranks, and told in one line."""

from __future__ import annotations

import pytest

from hpcrl.roles.account import GradientAccount, UnrollAccount


def test_unrolls_are_summed_and_what_is_left_is_under_way() -> None:
    total = UnrollAccount(acted=1200, dropped=3) + UnrollAccount(learned=1100) + UnrollAccount(1, 2, 3)
    assert total == UnrollAccount(1201, 1102, 6) and total.under_way == 93
    assert total.describe() == (
        "unrolls: 1,201 filled, 1,102 learned from, 6 dropped as too old, 93 under way at the end"
    )


def test_gradients_are_summed_shard_by_shard_and_what_is_left_is_under_way() -> None:
    workers = GradientAccount(700, 20, (0, 0)) + GradientAccount(500, 5, (0, 0))
    total = workers + GradientAccount(0, 0, (1175, 0)) + GradientAccount(0, 0, (0, 1170))
    assert total == GradientAccount(1200, 25, (1175, 1170)) and total.under_way == (0, 5)
    with pytest.raises(ValueError, match="argument 2"):
        total + GradientAccount(0, 0, (0,))


@pytest.mark.parametrize(
    ("applied", "text"),
    [
        ((1195,), "gradients: 1,200 pushed, 1,195 applied, 5 dropped as too old"),
        ((1195, 1195, 1195), "gradients: 1,200 pushed, 1,195 applied (on each of 3 shards), 5 dropped as too old"),
    ],
)
def test_gradients_are_told_in_one_line(applied: tuple[int, ...], text: str) -> None:
    account = GradientAccount(1200, 5, applied)
    assert account.describe() == text and account.under_way == (0,) * len(applied)


def test_shards_that_applied_unequal_numbers_are_told_one_by_one() -> None:
    line = GradientAccount(1200, 5, (1195, 1190)).describe()
    assert line.startswith("gradients: 1,200 pushed, 1,195 + 1,190 applied") and line.endswith("5 dropped as too old")
