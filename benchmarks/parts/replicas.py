"""Four replicas: one, two or all of balance are called on one account, all of coupon on one
campaign."""

from __future__ import annotations

from typing import Final

from benchmarks import workloads
from benchmarks.load.clients import clients
from benchmarks.measure import Place
from benchmarks.shop import Shop, Size, create_campaign, open_accounts
from benchmarks.stacks import addresses, admin_url
from benchmarks.subjects import GrpcSubject, Subject
from deploy.local.stack import Stack

REPLICAS: Final = 4
SHARES: Final = 2 * REPLICAS


async def place(stack: Stack) -> Place:
    """The subjects on a stack of four replicas. Those that are not called stay idle."""
    shop, servers = Shop(Size(accounts=1)), addresses(stack)
    async with clients("http2", {"balance": servers["balance"]}) as connected:
        await open_accounts(shop, connected)
    subjects: dict[str, Subject] = {}
    for count in (1, 2, REPLICAS):
        name = "1 replica" if count == 1 else f"{count} replicas"
        called = {"balance": servers["balance"][:count]}
        subjects[name] = GrpcSubject(workloads.deduct(shop, accounts=1), called)
    async with clients("http2", {"coupon": servers["coupon"]}) as connected:
        shop.campaign_id = await create_campaign(shop, connected)
    for name, shares in (("1 share", 1), (f"{SHARES} shares", SHARES)):
        issue = workloads.issue_coupon(shop, shares=shares)
        subjects[name] = GrpcSubject(issue, {"coupon": servers["coupon"]})
    return Place(subjects, admin_url(stack), stack.plan.data_dir)
