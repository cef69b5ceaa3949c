"""The names under which the stores use a connection and the rows of its statements."""

from __future__ import annotations

from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

Connection: TypeAlias = AsyncConnection
Row: TypeAlias = sa.Row[Any]
