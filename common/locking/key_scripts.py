"""The scripts of the key locks. PostgreSQL decides; these order those who want the same keys.

A lock key has three keys in Redis, all in one slot:

- the key itself: its owner, with the owner's lease as its time to live;
- ``{tag}{queue}key``: the waiters in order of arrival, at most one of a process for a set of keys;
- ``{tag}{fence}key``: the last fence, kept for FENCE_MS after its last use.

The tag is the key's own hash tag, or else the whole key. No lock key has two pairs of braces
(``has_slot``), so that none of these names is that of another lock.

Owner and waiter are named ``<process>:<number>``; a number is used for one acquisition only. Each
command has a number of its own, and its reply begins with it, so that the reply to another command
is recognised.

A release makes the next waiter the owner and publishes that on the channel of its process. PUBLISH
returns how many connections listen there: a process that is gone is passed over. The lease is that
of the releasing process, and the message says so: in a rolling deployment they may differ.

A fence is at least the server's time in microseconds: it rises after a flush or an empty restart
too, and through a clock that was set back by less than FENCE_MS.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

CHANNEL: Final = "tally:locks:"
"""What the name of a process' channel begins with."""
_HASH_TAG: Final = re.compile(r"[^{}]*\{([^{}]+)\}[^{}]*")
TURNS_MAX: Final = 8
"""Fences of one grant: as many holders of the same process may follow each other."""
FENCE_MS: Final = 86_400_000
QUEUE_MS: Final = 10_000
"""Time to live of a queue in which nobody waits any more; who waits renews it every second."""

_COMMON: Final = f"""
local lease = ARGV[1]

-- The next fence of the keys first to last, and the server's time in milliseconds.
local function raise(first, last)
  local time = redis.call('TIME')
  local fence = time[1] * 1000000 + time[2]
  local now_ms = math.floor(fence / 1000)
  for i = first, last, 3 do
    local before = tonumber(redis.call('GET', KEYS[i + 2]) or 0)
    if before >= fence then fence = before + 1 end
  end
  for i = first, last, 3 do
    local highest = string.format('%.0f', fence + {TURNS_MAX - 1})
    redis.call('SET', KEYS[i + 2], highest, 'PX', {FENCE_MS})
  end
  return fence, now_ms
end

-- Make the first waiter whose process listens the owner of key i; returns it, or nothing.
local function hand_over(i)
  local id = redis.call('LPOP', KEYS[i + 1])
  while id do
    local fence, now_ms = raise(i, i)
    local process, number = string.match(id, '^(.*):(%d+)$')
    local message = string.format('%s:%.0f:%.0f:%s', number, fence, now_ms, lease)
    if redis.call('PUBLISH', '{CHANNEL}' .. process, message) > 0 then
      redis.call('SET', KEYS[i], id, 'PX', lease)
      return id
    end
    id = redis.call('LPOP', KEYS[i + 1])
  end
end

-- Take id out of all queues and away from the keys that it owns; returns the number of those.
local function free(id)
  local freed = 0
  for i = 1, #KEYS, 3 do
    redis.call('LREM', KEYS[i + 1], 0, id)
    if redis.call('GET', KEYS[i]) == id then
      freed = freed + 1
      if not hand_over(i) then redis.call('DEL', KEYS[i]) end
    end
  end
  return freed
end

-- Own all keys, or none: then wait in the queue of the first busy one, if asked to.
local function enter(id, command, waits)
  for i = 1, #KEYS, 3 do
    local owner = redis.call('GET', KEYS[i]) or hand_over(i)
    if owner and owner ~= id then
      for j = 1, #KEYS, 3 do
        if redis.call('GET', KEYS[j]) == id and not hand_over(j) then
          redis.call('DEL', KEYS[j])
        end
      end
      if waits == '1' then
        if not redis.call('LPOS', KEYS[i + 1], id) then redis.call('RPUSH', KEYS[i + 1], id) end
        redis.call('PEXPIRE', KEYS[i + 1], {QUEUE_MS})
      end
      local time = redis.call('TIME')
      local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
      return {{command, 0, redis.call('PTTL', KEYS[i]), now_ms}}
    end
  end
  local fence, now_ms = raise(1, #KEYS)
  for i = 1, #KEYS, 3 do
    redis.call('SET', KEYS[i], id, 'PX', lease)
    if #KEYS > 3 then redis.call('LREM', KEYS[i + 1], 0, id) end
  end
  return {{command, fence, 0, now_ms}}
end
"""

ENTER: Final = f"{_COMMON}return enter(ARGV[2], tonumber(ARGV[3]), ARGV[4])"
"""Lease in ms, id, command, whether to wait. Repeatable: an owner gets its keys again, renewed."""

FREE: Final = f"{_COMMON}return {{tonumber(ARGV[3]), free(ARGV[2])}}"
"""Lease in ms of the next owner, id, command. Repeatable."""

PASS_ON: Final = f"""{_COMMON}
free(ARGV[5])
return enter(ARGV[2], tonumber(ARGV[3]), ARGV[4])
"""
"""FREE of the id ARGV[5], and ENTER behind all who wait."""

RENEW: Final = """
local owned = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[2] then
    redis.call('PEXPIRE', key, ARGV[1])
    owned = owned + 1
  end
end
return {tonumber(ARGV[3]), owned}
"""
"""Lease in ms, id, command; KEYS are the owners' keys only. Never creates a key: lost is lost."""


def has_slot(key: str) -> bool:
    """Whether all names of the key are in one slot: it has one hash tag, or no braces."""
    return ("{" not in key and "}" not in key) or _HASH_TAG.fullmatch(key) is not None


@lru_cache(maxsize=1_024)
def redis_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """KEYS of the scripts: owner, queue and fence of each key, in the key's slot."""
    return tuple(name for key in keys for name in (key, *_beside(key)))


def _beside(key: str) -> tuple[str, str]:
    tagged = _HASH_TAG.fullmatch(key)
    tag = key if tagged is None else tagged[1]
    return f"{{{tag}}}{{queue}}{key}", f"{{{tag}}}{{fence}}{key}"
