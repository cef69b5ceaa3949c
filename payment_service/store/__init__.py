"""The payment service's SQL: set-based statements, each for a whole batch. Never commits."""

from payment_service.store.leases import renew, take
from payment_service.store.reads import read, read_claims, read_newest
from payment_service.store.rows import RequestId
from payment_service.store.writes import Loaded, add, free, load, lock_places, save

__all__ = [
    "Loaded",
    "RequestId",
    "add",
    "free",
    "load",
    "lock_places",
    "read",
    "read_claims",
    "read_newest",
    "renew",
    "save",
    "take",
]
