"""Metrics pages of a stack that is made up, at a time of its clock."""

from __future__ import annotations

from deploy.monitoring.readings import Page, Reading, read_pages
from deploy.watch.__main__ import NAMES

SERVICES = {"balance": 40.0, "coupon": 12.0, "order": 25.0, "payment": 6.0}
"""Calls per second."""
ENDS = (
    ("OK", "", 1.0),
    ("UNAVAILABLE", "GATEWAY_UNAVAILABLE", 0.01),
    ("RESOURCE_EXHAUSTED", "COUPON_SOLD_OUT", 0.2),
)
"""How calls end, as shares of those that succeed."""
METHODS = {
    "balance": "tally.balance.v1.BalanceService/ChargeBalance",
    "coupon": "tally.coupon.v1.CouponService/IssueCoupon",
    "order": "tally.order.v1.OrderService/CreateOrder",
    "payment": "tally.payment.v1.PaymentService/ConfirmPayment",
}
UNIX_S = 1_800_000_000
LANES = {"balance": ("account",), "coupon": ("campaign", "coupon"), "order": ("order", "saga")}


def page(service: str, replica: int, at_s: float) -> Page:
    """The page of one replica after so many seconds of even load."""
    calls = SERVICES[service] * at_s
    method = f'method="/{METHODS[service]}"'
    lines = [
        "tally_ready 1.0",
        "tally_grpc_calls_in_flight 3.0",
        *(
            f'tally_grpc_calls_total{{{method},code="{code}",reason="{reason}"}} {part * calls}'
            for code, reason, part in ENDS
        ),
        f'tally_grpc_call_seconds_bucket{{{method},le="0.01"}} {0.5 * calls}',
        f'tally_grpc_call_seconds_bucket{{{method},le="0.1"}} {0.98 * calls}',
        f'tally_grpc_call_seconds_bucket{{{method},le="1.0"}} {calls}',
        f'tally_grpc_call_seconds_bucket{{{method},le="+Inf"}} {calls}',
        'tally_pool_sessions_in_use{pool="lanes"} 2.0',
        'tally_pool_waiting{pool="lanes"} 0.0',
        "tally_lock_absent 0.0",
        "tally_database_deadlocks_total 0.0",
        *(f'tally_lock_keys_total{{outcome="{each}"}} {at_s}' for each in ("held", "busy")),
    ]
    for lane in LANES.get(service, ()):
        lines += [
            f'tally_lane_commands{{lane="{lane}"}} 5.0',
            f'tally_lane_oldest_wait_seconds{{lane="{lane}"}} 0.08',
            *(
                f'tally_lane_lock_{what}_seconds_bucket{{lane="{lane}",le="{le}"}} {at_s}'
                for what, least in (("wait", 0.01), ("hold", 0.1))
                for le in (least, "+Inf")
            ),
            f'tally_lane_batch_commands_sum{{lane="{lane}"}} {4 * calls}',
            f'tally_lane_batch_commands_count{{lane="{lane}"}} {calls}',
            f'tally_lane_version_conflicts_total{{lane="{lane}"}} {at_s}',
        ]
    if service == "order":
        lines.append('tally_active_failed_compensations{kind="PAY_ORDER"} 1.0')
        for state, count, oldest in (("RUNNING", 12, 1.4), ("NEEDS_ATTENTION", 2, 700.0)):
            labels = f'kind="PAY_ORDER",state="{state}"'
            lines += [
                f"tally_active_sagas{{{labels}}} {count}",
                f"tally_active_sagas_oldest_seconds{{{labels}}} {oldest}",
                f'tally_sagas_total{{kind="PAY_ORDER",state="COMPLETED"}} {at_s}',
            ]
    if service == "payment":
        lines += [
            'tally_open_payments{state="UNKNOWN"} 3.0',
            'tally_open_payments_oldest_seconds{state="UNKNOWN"} 61.0',
            'tally_open_payments{state="REFUND_REFUSED"} 1.0',
            'tally_open_payments_oldest_seconds{state="REFUND_REFUSED"} 7200.0',
            'tally_circuit_open{circuit="gateway.confirm"} 1.0',
            f'tally_gateway_outcomes_total{{asked="confirm",outcome="Confirmed"}} {at_s}',
        ]
    return Page(service, f"{service}-{replica}", "\n".join(lines))


def audit_page(at_s: float, *, breaches: int = 0) -> Page:
    """The page of the audit, whose last verdict was two minutes ago."""
    lines = [
        f'tally_audit_completion_timestamp_seconds{{scope="full"}} {UNIX_S + at_s - 120}',
        f"tally_audit_breaches {breaches}.0",
        'tally_audit_standing_minor{currency="KRW"} 12000.0',
        'tally_audit_standing_minor{currency="USD"} 0.0',
        "tally_audit_new_standing 1.0",
    ]
    return Page("audit", "audit-0", "\n".join(lines))


def reading(
    at_s: float, *, without: str = "", replicas: int = 2, audit: Page | None = None
) -> Reading:
    """All pages, or all but that of one replica; with that of the audit if it runs."""
    pages = [page(service, each, at_s) for service in SERVICES for each in range(replicas)]
    answered = [each for each in pages if each.replica != without] + ([audit] if audit else [])
    return read_pages(answered, NAMES, taken_s=at_s, unix_s=UNIX_S + at_s)
