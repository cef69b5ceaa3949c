"""All experiments of the lab, in the order of the report."""

from __future__ import annotations

from typing import Final

from benchmarks.lab import account_races, coupon_race, orders, payments, seats
from benchmarks.lab.experiment import Experiment

EXPERIMENTS: Final[dict[str, Experiment]] = {
    each.key: each
    for each in (
        account_races.CHARGE,
        account_races.DEDUCT,
        coupon_race.EXPERIMENT,
        orders.EXPERIMENT,
        payments.EXPERIMENT,
        seats.EXPERIMENT,
        account_races.UNIFORM,
    )
}
"""By key."""
