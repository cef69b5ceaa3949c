"""What methods declare to be refused with: whole, and the same as in the contract's comments.

That calls end in no other way is compared after each test module (tests/support/ends.py).
"""

from __future__ import annotations

import re
from typing import Final

import pytest
from prometheus_client import Counter

from common import metrics
from common.errors import Code
from common.rpc import reasons
from common.rpc.reasons import Reason
from deploy.errors_reference import methods, package_of
from deploy.next_steps import FINAL, NEXT_STEPS
from order_service.errors import SagaLost
from tests.support import contract_gaps, ends
from tests.support.contract import BULK, OF_EVERY_SERVICE, REASONS, refusals_of
from tests.unit.client.test_errors import refusals_of_services
from tests.unit.test_protos import COMMENTS, NOT_REASONS

METHODS: Final = {method.descriptor.name: method for method in methods()}
CALLED_BY_PAY_ORDER: Final = ("RedeemCoupon", "DeductBalance", "ConfirmPayment")
NEVER_OF_A_STEP: Final = {"REDEMPTION_CANCELLED", "DEDUCTION_CANCELLED"}
"""Only the saga itself cancels its steps."""
_REASON: Final = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
_AS_OF: Final = re.compile(r"as of (\w+)")


def named(name: str) -> set[str]:
    """The reasons that a method's comment names as its errors."""
    _, _, errors = COMMENTS[name].replace("//", "").partition("Errors")
    found = set(_REASON.findall(errors)) - NOT_REASONS - OF_EVERY_SERVICE
    return found.union(*(named(other) for other in _AS_OF.findall(errors)))


def test_nothing_of_the_contract_lacks_anything() -> None:
    assert contract_gaps.gaps() == []


def test_a_gap_names_the_method_and_what_is_missing() -> None:
    found = list(contract_gaps.gaps_of(METHODS["GetBalance"].descriptor, {}, set()))
    assert found == [
        "no method in tally_client/services.py",
        "no request in tests/integration/contract/valid_requests.py",
    ]


def test_a_method_without_a_declaration_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(METHODS["GetCart"].function, "_tally_refuses")
    assert contract_gaps.gaps() == ["CartService/GetCart: no @refuses on the servicer's method"]


def test_only_a_service_without_a_contract_has_no_common_reasons() -> None:
    assert reasons.ends_of("/tally.test.v9.Echo/Say", lambda: None) == []
    with pytest.raises(KeyError):
        reasons.ends_of("/tally.order.v1.CartService/GetCarts", METHODS["GetCart"].function)


@pytest.mark.parametrize("name", METHODS)
def test_comment_and_declaration_name_the_same_reasons(name: str) -> None:
    method = METHODS[name]
    common = {each.reason for each in reasons.common_to(method.descriptor)}
    declared = {reasons.reason_of(each).reason for each in reasons.declared(method.function).call}
    assert named(name) - common == declared - common - OF_EVERY_SERVICE


def test_every_refusal_that_a_service_may_raise_is_declared() -> None:
    raised = {Reason(kind.code, kind.reason) for kind in refusals_of_services()}
    declared = {each for method in methods() for each in refusals_of(method)}
    assert raised <= declared
    assert not SagaLost.reason, "it leaves no service"


def test_methods_declare_refusals_of_their_own_service() -> None:
    for method in METHODS.values():
        for each in (*reasons.declared(method.function).call,):
            if not isinstance(each, Reason):
                assert package_of(each) in {package_of(method.function), "common"}, method.path


def test_paying_passes_on_every_final_refusal_of_its_steps() -> None:
    paying = set(reasons.declared(METHODS["PayOrder"].function).call)
    final = {
        reasons.reason_of(each)
        for name in CALLED_BY_PAY_ORDER
        for each in reasons.declared(METHODS[name].function).call
        if isinstance(each, type) and each.retry_after_s is None
    }
    of_paying = {reasons.reason_of(each) for each in paying}
    assert {each for each in final if each.reason not in NEVER_OF_A_STEP} <= of_paying
    passed_on = {each for each in paying if isinstance(each, Reason)}
    assert passed_on <= final


def test_every_reason_has_one_next_step() -> None:
    assert NEXT_STEPS.keys() == REASONS | OF_EVERY_SERVICE
    assert FINAL.keys() <= NEXT_STEPS.keys()


@pytest.mark.parametrize("name", sorted(BULK))
def test_items_declare_what_single_calls_do(name: str) -> None:
    single = {"BatchWrite": ("ChargeBalance", "DeductBalance", "RefundDeduction")}
    declared = reasons.declared(METHODS[name].function)
    calls = {
        each
        for other in single.get(name, ("IssueCoupon",))
        for each in reasons.declared(METHODS[other].function).call
    }
    assert set(declared.items) == calls - set(declared.call)


def test_an_end_that_is_not_declared_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter("calls", "Calls.", ("method", "code", "reason"), registry=None)
    monkeypatch.setattr(metrics, "CALLS", counter)
    monkeypatch.setattr(ends, "_seen", {})
    path = METHODS["GetBalance"].path
    counter.labels(path, "OK", "").inc()
    counter.labels(path, Code.NOT_FOUND.value, "ACCOUNT_NOT_FOUND").inc()
    counter.labels(path, Code.NOT_FOUND.value, "COUPON_NOT_FOUND")
    assert ends.undeclared() == []
    counter.labels(path, Code.NOT_FOUND.value, "COUPON_NOT_FOUND").inc()
    assert ends.undeclared() == [(path, "NOT_FOUND", "COUPON_NOT_FOUND")]
    assert ends.undeclared() == []


def test_an_end_that_a_stand_in_had_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter("calls", "Calls.", ("method", "code", "reason"), registry=None)
    monkeypatch.setattr(metrics, "CALLS", counter)
    monkeypatch.setattr(ends, "_seen", {})
    path = METHODS["GetBalance"].path
    counter.labels(path, Code.NOT_FOUND.value, "COUPON_NOT_FOUND").inc()
    ends._of_stand_ins.add(path)
    assert ends.undeclared() == [], "the stand-in's"
    counter.labels(path, Code.NOT_FOUND.value, "COUPON_NOT_FOUND").inc()
    assert ends.undeclared() == [(path, "NOT_FOUND", "COUPON_NOT_FOUND")]
