"""The failpoints of the services, and the cells of the crash matrix, as data.

``tests/unit/test_failpoint_list.py`` compares this list with the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from common.failpoints import Action

BEFORE, AFTER = "before", "after"

NO_SAGA: Final = "no saga and no sweep calls it: a client repeats it"
BEGINS: Final = "it begins what is recovered later"
OPERATOR: Final = "an operator calls it, and repeats it"
AT_STOP: Final = "it runs when a process stops"
LOCK_NOT_HELD: Final = "it runs when a lock was lost, or not granted for long"
LIMITS_OFF: Final = "rates are not limited there: tests of the limits make it fail"
AT_START: Final = "it runs when a process starts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A commit, call or publish, with a failpoint before and one after it."""

    name: str
    service: str
    """In whose processes it is; the cell's fault hits one of its replicas."""
    interruption: str = ""
    """The failpoint where a process is killed first, so that recovery passes this place."""
    no_recovery: str = ""
    """Why recovery does not pass it."""
    no_first_run: str = ""
    """Why nothing but recovery passes it."""
    fails: bool = True
    """Whether an error and a cancellation can occur here."""
    with_error: str = ""
    """A failpoint that has to fail for this place to be passed."""

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.name}.{BEFORE}", f"{self.name}.{AFTER}"


def _lane(service: str, lane: str, *commands: tuple[str, str]) -> list[Place]:
    """Each command with the interruption of a recovery that repeats it, or why there is none."""
    return [
        Place(
            name=f"lane.{lane}.{command}",
            service=service,
            interruption=how if "." in how else "",
            no_recovery="" if "." in how else how,
        )
        for command, how in commands
    ]


def _calls(*methods: str) -> list[Place]:
    return [
        Place(name=f"call.{method}", service="order", interruption=f"call.{method}.before")
        for method in methods
    ]


PLACES: Final = (
    *_lane(
        *("balance", "account"),
        ("ChargeBalance", NO_SAGA),
        ("DeductBalance", "call.DeductBalance.before"),
        ("RefundDeduction", "call.RefundDeduction.before"),
    ),
    *_lane("coupon", "create_campaign", ("CreateCampaign", NO_SAGA)),
    *_lane("coupon", "issue_coupon", ("IssueCoupon", NO_SAGA)),
    *_lane("coupon", "issue_from_share", ("IssueFromShare", NO_SAGA)),
    *_lane("coupon", "issue_tickets", ("IssueTickets", "redis.finish_tickets.before")),
    *_lane(
        *("coupon", "use_coupon"),
        ("RedeemCoupon", "call.RedeemCoupon.before"),
        ("RestoreCoupon", "call.RestoreCoupon.before"),
    ),
    *_lane(
        *("order", "product"),
        ("CreateProduct", NO_SAGA),
        ("RestockProduct", NO_SAGA),
        ("AddSeats", NO_SAGA),
    ),
    *_lane(
        *("order", "order"),
        ("CreateOrder", BEGINS),
        ("PayOrder", BEGINS),
        ("CancelOrder", BEGINS),
        ("CloseSaga", "lane.order.CloseSaga.before"),
        ("NoteFailure", "lane.order.NoteFailure.before"),
        ("ExpireOrder", "lane.order.ExpireOrder.before"),
        ("RetrySaga", OPERATOR),
        ("ResolveSaga", OPERATOR),
    ),
    *_lane(
        *("order", "saga"),
        ("WriteSaga", "lane.saga.WriteSaga.before"),
        ("RenewLease", "call.ConfirmPayment.before"),
    ),
    *_lane(
        *("payment", "payment"),
        ("ConfirmPayment", "call.ConfirmPayment.before"),
        ("BeginConfirm", "gateway.confirm.before"),
        ("RecordOutcome", "gateway.confirm.after"),
        ("CancelPayment", "call.CancelPayment.before"),
        ("ResolvePayment", OPERATOR),
    ),
    Place(
        name="transaction.saga_takeover",
        service="order",
        interruption="lane.saga.WriteSaga.before",
    ),
    Place(name="transaction.saga_wake", service="order", interruption="gateway.confirm.after"),
    Place(name="transaction.heartbeat", service="order", interruption="lane.saga.WriteSaga.before"),
    Place(name="transaction.retry_sagas", service="order", no_recovery=OPERATOR),
    Place(name="transaction.replay_ticket", service="coupon", no_recovery=NO_SAGA),
    Place(name="transaction.cart", service="order", no_recovery=NO_SAGA),
    Place(
        name="transaction.payment_acquisition",
        service="payment",
        interruption="gateway.confirm.before",
    ),
    Place(
        name="transaction.payment_renewal",
        service="payment",
        interruption="gateway.confirm.before",
    ),
    Place(
        name="transaction.payment_recheck",
        service="payment",
        interruption="gateway.confirm.before",
        no_first_run=AT_START,
    ),
    Place(
        name="transaction.clean_up_answers",
        service="balance",
        interruption="lane.account.DeductBalance.before",
        no_first_run=AT_START,
    ),
    *_calls("RedeemCoupon", "BatchWrite", "ConfirmPayment"),
    Place(
        name="call.DeductBalance",
        service="order",
        interruption="call.DeductBalance.before",
        # Sagas that are taken over together share a call, until one fails.
        with_error="call.BatchWrite.before",
    ),
    Place(name="call.GetConfirmations", service="order", interruption="gateway.confirm.after"),
    *_calls("RestoreCoupon", "RefundDeduction", "CancelPayment"),
    Place(
        name="gateway.confirm",
        service="payment",
        interruption="gateway.confirm.before",
    ),
    Place(name="gateway.find", service="payment", interruption="gateway.confirm.after"),
    Place(name="gateway.cancel", service="payment", interruption="gateway.cancel.before"),
    Place(name="redis.acquire_locks", service="balance", interruption="call.DeductBalance.before"),
    Place(name="redis.release_locks", service="balance", interruption="call.DeductBalance.before"),
    Place(name="redis.begin_mark", service="payment", interruption="call.ConfirmPayment.before"),
    Place(name="redis.set_mark", service="payment", interruption="call.ConfirmPayment.before"),
    Place(
        name="redis.clear_mark",
        service="payment",
        interruption="call.ConfirmPayment.before",
        with_error="gateway.confirm.before",
    ),
    Place(
        name="redis.take_of_limits",
        service="balance",
        no_first_run=LIMITS_OFF,
        no_recovery=LIMITS_OFF,
    ),
    Place(name="redis.enqueue_ticket", service="coupon", no_recovery=NO_SAGA),
    Place(name="redis.look_up_tickets", service="coupon", no_recovery=NO_SAGA),
    *(
        # The next consumer begins with the tickets that the killed one has not finished.
        Place(name=f"redis.{call}", service="coupon", interruption="redis.finish_tickets.before")
        for call in (
            *("list_queues", "read_queue", "finish_tickets"),
            *("enter_lock", "renew_lock"),
        )
    ),
    Place(
        name="redis.pass_on_lock",
        service="coupon",
        no_first_run=LOCK_NOT_HELD,
        no_recovery=LOCK_NOT_HELD,
    ),
    Place(
        name="redis.free_lock",
        service="coupon",
        no_first_run=AT_STOP,
        no_recovery=AT_STOP,
    ),
    # A change in memory: it has no connection to lose, and awaits nothing.
    Place(
        name="publish.order",
        service="order",
        interruption="lane.order.CloseSaga.before",
        fails=False,
    ),
)
NAMES: Final = {name: place for place in PLACES for name in place.names}
"""The place of every failpoint."""

ACTIONS: Final = {
    "kill -9": (Action.KILL, (BEFORE, AFTER)),
    "pause": (Action.PAUSE, (BEFORE, AFTER)),
    "error": (Action.ERROR, (BEFORE,)),
    "cancel": (Action.CANCEL, (BEFORE, AFTER)),
    "reply lost": (Action.ERROR, (AFTER,)),
}
"""The columns of the matrix. Before a call or commit nothing has happened, and a failure is an
error. After it the effect is there, and a failure is a lost reply."""
FIRST_RUN, RECOVERY = PHASES = "first run", "recovery"


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one failpoint, in a first run or while an interrupted one is recovered."""

    place: Place
    when: str
    column: str
    phase: str

    @property
    def name(self) -> str:
        """The failpoint's name."""
        return f"{self.place.name}.{self.when}"

    @property
    def action(self) -> Action:
        return ACTIONS[self.column][0]

    @property
    def interruption(self) -> str:
        """The failpoint where a process is killed first; '' in a first run."""
        return self.place.interruption if self.phase == RECOVERY else ""

    def __str__(self) -> str:
        return f"{self.name}, {self.column}, {self.phase}"


def missing(place: Place, when: str, column: str, phase: str) -> str:
    """Why there is no such cell; '' if there is one."""
    if phase == RECOVERY and place.no_recovery:
        return place.no_recovery
    if phase == FIRST_RUN and place.no_first_run:
        return place.no_first_run
    if when not in ACTIONS[column][1]:
        return "nothing has happened yet" if when == BEFORE else "the effect is there: reply lost"
    if not place.fails and ACTIONS[column][0] in {Action.ERROR, Action.CANCEL}:
        return "a change in memory, without a connection or an await"
    return ""


def cells() -> Iterator[Cell]:
    """Every cell of the matrix."""
    for phase in (FIRST_RUN, RECOVERY):
        for place in PLACES:
            for when in (BEFORE, AFTER):
                for column in ACTIONS:
                    if not missing(place, when, column, phase):
                        yield Cell(place, when, column, phase)
