"""Whom each method admits, as the contract says, and that none says nothing or something wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from common.identity.caller import Caller, Kind
from common.identity.errors import NotPermitted
from common.rpc.access import MethodAccess, callers_of, method_of
from common.rpc.reserved_ids import refusal_of_reserved_ids
from deploy.reference import SETTINGS
from protos import access
from tally.balance.v1 import balance_pb2
from tally.options.v1 import access_pb2
from tests.support.contract import METHODS, METHODS_BY_NAME, SERVICES, every_method

USER, SERVICE = access_pb2.CALLER_USER, access_pb2.CALLER_SERVICE
OPERATOR, PUBLIC = access_pb2.CALLER_OPERATOR, access_pb2.CALLER_PUBLIC
NEVER_FOR_USERS = {
    # A user must not top himself up.
    *("ChargeBalance", "BatchWrite", "BatchIssueCoupons", "DeductBalance"),
    # For other services only.
    *("ConfirmPayment", "CancelPayment", "GetConfirmations", "RedeemCoupon", "RestoreCoupon"),
    "RefundDeduction",
}
FOR_OPERATORS = {
    *("CreateProduct", "RestockProduct", "AddSeats", "CreateCampaign", "ResolvePayment"),
    *("ListSagas", "GetSaga", "RetrySaga", "RetrySagas", "ResolveSaga"),
}
FOR_EVERYONE = {
    *("GetProduct", "ListProducts", "ListSeats", "WatchSeats", "GetCampaign", "ListCampaigns"),
}


@every_method
def test_each_method_admits_its_set_of_callers(method: MethodDescriptor) -> None:
    expected = {USER, SERVICE, OPERATOR}
    if method.name in NEVER_FOR_USERS:
        expected = {SERVICE, OPERATOR}
    elif method.name in FOR_OPERATORS:
        expected = {OPERATOR}
    elif method.name in FOR_EVERYONE:
        expected = {PUBLIC}
    assert set(callers_of(method)) == expected


def test_the_contract_has_no_problem() -> None:
    assert access.problems(SERVICES) == []


def broken(callers: list[Any] | None, method: str = "GetBalance") -> list[str]:
    """The problems of the balance service with another access of one method."""
    file = FileDescriptorProto()
    balance_pb2.DESCRIPTOR.CopyToProto(file)
    [changed] = [one for one in file.service[0].method if one.name == method]
    changed.options.ClearExtension(access_pb2.access)
    if callers is not None:
        changed.options.Extensions[access_pb2.access].extend(callers)
    pool = descriptor_pool.DescriptorPool()
    _add(pool, file, set())
    return access.problems([pool.FindServiceByName("tally.balance.v1.BalanceService")])


def _add(pool: Any, file: FileDescriptorProto, added: set[str]) -> None:
    """Add the file to the pool, and what it imports before it."""
    for name in file.dependency:
        if name not in added:
            imported = FileDescriptorProto()
            descriptor_pool.Default().FindFileByName(name).CopyToProto(imported)
            _add(pool, copy.deepcopy(imported), added)
    if file.name not in added:
        pool.Add(file)
        added.add(file.name)


@pytest.mark.parametrize(
    ("callers", "method", "problem"),
    [
        (None, "GetBalance", "has no option"),
        ([], "GetBalance", "has no option"),
        ([access_pb2.CALLER_UNSPECIFIED], "GetBalance", "is a set"),
        ([USER, USER], "GetBalance", "is a set"),
        ([USER, PUBLIC], "GetBalance", "stands alone"),
        ([USER, OPERATOR], "BatchWrite", "no user_id"),
    ],
)
def test_wrong_access_is_named(callers: list[Any] | None, method: str, problem: str) -> None:
    [found] = broken(callers, method)
    assert found.startswith(f"tally.balance.v1.BalanceService.{method}: ")
    assert problem in found


def test_access_that_is_right_has_no_problem() -> None:
    assert broken([USER, OPERATOR]) == []


def test_methods_of_sagas_exist_and_admit_services() -> None:
    names = [name for settings in SETTINGS for name in settings.saga_methods]
    assert len(names) == 8
    for name in names:
        assert SERVICE in callers_of(method_of(f"/{name}"))


@pytest.mark.parametrize("path", ["/tally.balance.v1.BalanceService/Gone", "/tally.Gone/Get", ""])
def test_a_method_that_is_not_described_admits_nobody(path: str) -> None:
    with pytest.raises(TypeError, match="admits nobody"):
        method_of(path)


# -- requests --------------------------------------------------------------------------------------


def caller(kind: Kind, subject: str = "ann") -> Caller:
    return Caller(kind, subject, until_s=0.0)


@pytest.mark.parametrize(
    ("user_id", "kind", "admitted"),
    [
        ("ann", Kind.USER, True),
        ("bob", Kind.USER, False),
        ("", Kind.USER, False),
        ("ANN", Kind.USER, False),
        ("ann ", Kind.USER, False),
        ("bob", Kind.SERVICE, True),
        ("bob", Kind.OPERATOR, True),
    ],
)
def test_a_user_names_only_himself(user_id: str, kind: Kind, admitted: bool) -> None:
    found = MethodAccess(METHODS_BY_NAME["GetBalance"], {})
    request = balance_pb2.GetBalanceRequest(user_id=user_id)
    if admitted:
        found.admit_user(caller(kind), request)
        return
    with pytest.raises(NotPermitted):
        found.admit_user(caller(kind), request)


@pytest.mark.parametrize(
    ("methods", "admitted"),
    [
        ({}, False),
        ({"till": frozenset({"tally.balance.v1.BalanceService/GetBalance"})}, True),
        ({"till": frozenset({"tally.balance.v1.BalanceService/ChargeBalance"})}, False),
        ({"other": frozenset({"tally.balance.v1.BalanceService/GetBalance"})}, False),
    ],
)
def test_a_service_has_the_methods_of_its_identity(
    methods: dict[str, frozenset[str]], admitted: bool
) -> None:
    found = MethodAccess(METHODS_BY_NAME["GetBalance"], methods)
    if admitted:
        found.admit(caller(Kind.SERVICE, "till"))
        return
    with pytest.raises(NotPermitted):
        found.admit(caller(Kind.SERVICE, "till"))


def test_every_mutation_with_a_request_id_can_refuse_reserved_ones() -> None:
    checked = {one.name for one in METHODS if refusal_of_reserved_ids(one.input_type) is not None}
    taking = {
        one.name
        for one in METHODS
        if {"request_id", "items"} & {field.name for field in one.input_type.fields}
    }
    assert checked == taking
