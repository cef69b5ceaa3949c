"""DeductBalance by ORM and polling lock: a session and transaction per request, under a lock.

The lock is one in Redis per user, which waits by polling (redis-py's Lock, its defaults). Inside it
the account is read for update, the ledger entry is added and the session commits. The request_id is
unique, so that a repeated call has no second effect.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final, TypeAlias

import grpc
import redis.asyncio as redis
import sqlalchemy as sa
import uvloop
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tally.balance.v1 import balance_pb2 as pb

DEDUCT: Final = "/tally.balance.v1.BalanceService/DeductBalance"
DATABASE_URL: Final = "BENCH_DATABASE_URL"
REDIS_URL: Final = "BENCH_REDIS_URL"
POOL_SIZE: Final = 20
LOCK_S: Final = 10.0
CONNECTIONS_MAX: Final = 1024
FIRST_MINOR: Final = 10**14


Context: TypeAlias = grpc.aio.ServicerContext[pb.DeductBalanceRequest, pb.DeductBalanceResponse]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    available_minor: Mapped[int] = mapped_column(sa.BigInteger)
    version: Mapped[int]


class Entry(Base):
    __tablename__ = "entries"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(unique=True)
    amount_minor: Mapped[int] = mapped_column(sa.BigInteger)
    balance_after_minor: Mapped[int] = mapped_column(sa.BigInteger)
    create_time: Mapped[object] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )


class Balances:
    """The one method that is compared."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], locks: redis.Redis) -> None:
        self._sessions = sessions
        self._locks = locks

    async def deduct(
        self, request: pb.DeductBalanceRequest, context: Context
    ) -> pb.DeductBalanceResponse:
        key = f"orm:balance:{request.user_id}"
        async with self._locks.lock(key, timeout=LOCK_S), self._sessions() as session:
            entry = await session.scalar(
                sa.select(Entry).where(Entry.request_id == request.request_id)
            )
            replayed = entry is not None
            if entry is None:
                entry = await self._deduct(session, request, context)
                await session.commit()
        response = pb.DeductBalanceResponse(replayed=replayed)
        response.balance.user_id = entry.user_id
        response.balance.version = entry.sequence
        response.balance.available.amount_minor = entry.balance_after_minor
        response.balance.available.currency_code = request.amount.currency_code
        return response

    async def _deduct(
        self, session: AsyncSession, request: pb.DeductBalanceRequest, context: Context
    ) -> Entry:
        account = await session.get(Account, request.user_id, with_for_update=True)
        amount_minor = request.amount.amount_minor
        if account is None or account.available_minor < amount_minor:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not enough")
        account.available_minor -= amount_minor
        account.version += 1
        entry = Entry(
            user_id=account.user_id,
            sequence=account.version,
            request_id=request.request_id,
            amount_minor=-amount_minor,
            balance_after_minor=account.available_minor,
        )
        session.add(entry)
        return entry


async def main(port: int, accounts: int) -> None:
    engine = create_async_engine(os.environ[DATABASE_URL], pool_size=POOL_SIZE, max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            sa.text(
                "INSERT INTO accounts SELECT 'user-' || n, :first, 0 FROM generate_series(0, :n) n"
            ),
            {"first": FIRST_MINOR, "n": accounts - 1},
        )
    locks = redis.Redis.from_url(os.environ[REDIS_URL], max_connections=CONNECTIONS_MAX)
    server = grpc.aio.server()
    balances = Balances(async_sessionmaker(engine, expire_on_commit=False), locks)
    method = grpc.unary_unary_rpc_method_handler(
        balances.deduct,
        pb.DeductBalanceRequest.FromString,
        pb.DeductBalanceResponse.SerializeToString,
    )
    service, name = DEDUCT.lstrip("/").split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
