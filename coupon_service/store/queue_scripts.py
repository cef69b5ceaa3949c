"""The scripts of the queues in Redis. They order tickets and hold no truth: coupons are rows.

The keys of one queue are in one slot, that of its partition:

- ``…:entries``, a stream: the waiting tickets in their order. An entry stays until its ticket is
  finished, so that its head is always what is due, for a later consumer too;
- ``…:tickets``, a hash: waiting ticket → campaign, user and sequence;
- ``…:users``, a hash: campaign and user → their waiting ticket, its sequence and request_id;
- ``…:counts``, a hash: the last sequence that was queued, and the last one that is finished;
- ``…:final:<ticket>``: what became of a ticket that no coupon carries, for a while.

And one of the partition: ``…:active``, a set with the names of the queues that have entries.

Each command has a number, and its reply begins with it, so that the reply to another command is
recognised. Whoever reads an entry gets a token of its content and finishes it by that token: after
a flush another entry may have the same id, and it stays.
"""

from __future__ import annotations

from typing import Final

ENTRY_BYTES_MAX: Final = 300
"""Longer than any entry that is written here."""

_COMMON: Final = f"""
local function counted(key, name) return tonumber(redis.call('HGET', key, name) or 0) end

-- The text of an entry that could be read, or else a digest of its content.
local function token(fields)
  if #fields == 2 and fields[1] == 'ticket' and #fields[2] <= {ENTRY_BYTES_MAX}
      and string.find(fields[2], '^[%w._:@ -]+$') then
    return fields[2]
  end
  return redis.sha1hex(table.concat(fields, '\\0'))
end
"""

ENQUEUE: Final = f"""{_COMMON}
local entries, tickets, users, counts, active = unpack(KEYS)
local number, queue, ticket, campaign, user, request, waiting_max, expire_at = unpack(ARGV)
local finished = counted(counts, 'finished')
local who = campaign .. ' ' .. user
local found = redis.call('HGET', users, who)
if found then
  local first, sequence, by = string.match(found, '^(%S+) (%d+) (%S+)$')
  if sequence and tonumber(sequence) > finished then
    -- The set may have been lost alone; then no consumer looks into this queue.
    redis.call('SADD', active, queue)
    return {{tonumber(number), 'found', first, tonumber(sequence) - finished, by}}
  end
end
if redis.call('XLEN', entries) >= tonumber(waiting_max) then
  return {{tonumber(number), 'full', ticket, 0, request}}
end
local sequence = string.format('%.0f', redis.call('HINCRBY', counts, 'queued', 1))
redis.call('XADD', entries, '*', 'ticket',
  sequence .. ' ' .. ticket .. ' ' .. campaign .. ' ' .. user .. ' ' .. request)
redis.call('HSET', tickets, ticket, campaign .. ' ' .. user .. ' ' .. sequence)
redis.call('HSET', users, who, ticket .. ' ' .. sequence .. ' ' .. request)
redis.call('SADD', active, queue)
local time = redis.call('TIME')
local left_ms = tonumber(expire_at) - time[1] * 1000
for i = 1, 4 do
  if redis.call('PTTL', KEYS[i]) < left_ms then redis.call('PEXPIREAT', KEYS[i], expire_at) end
end
return {{tonumber(number), 'queued', ticket, tonumber(sequence) - finished, request}}
"""
"""Queue a ticket, unless one of the user and campaign waits. A repetition finds its own."""

ACTIVE: Final = """
return {tonumber(ARGV[1]), unpack(redis.call('SRANDMEMBER', KEYS[1], ARGV[2]))}
"""
"""Names of queues that have entries; of many, some at random."""

READ: Final = f"""{_COMMON}
local number, size = unpack(ARGV)
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local read = {{tonumber(number), redis.call('XLEN', KEYS[1]), now_ms}}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', size)) do
  read[#read + 1] = entry[1]
  read[#read + 1] = token(entry[2])
end
return read
"""
"""How many entries there are, the server's time, and the first ones: id and token of each."""

LOOK_UP: Final = f"""{_COMMON}
local finished = counted(KEYS[2], 'finished')
local found = {{tonumber(ARGV[1])}}
for i = 2, #ARGV do
  local state = ''
  local waiting = redis.call('HGET', KEYS[1], ARGV[i])
  local who, sequence = string.match(waiting or '', '^(%S+ %S+) (%d+)$')
  if sequence and tonumber(sequence) > finished then
    state = 'waiting ' .. who .. ' ' .. string.format('%.0f', tonumber(sequence) - finished)
  elseif redis.call('EXISTS', KEYS[i + 1]) == 1 then
    state = 'final ' .. redis.call('GET', KEYS[i + 1])
  end
  found[#found + 1] = state
end
return found
"""
"""Of each ticket: its user and position, or what became of it, or nothing."""

FINISH: Final = f"""{_COMMON}
local entries, tickets, users, counts, active = unpack(KEYS, 1, 5)
local number, queue, keep_ms = unpack(ARGV, 1, 3)
local finished, removed = counted(counts, 'finished'), 0
for i = 4, #ARGV, 6 do
  local id, known, ticket, who, sequence, final = unpack(ARGV, i, i + 5)
  local there = redis.call('XRANGE', entries, id, id)[1]
  if there and token(there[2]) == known then
    removed = removed + redis.call('XDEL', entries, id)
    if ticket ~= '' then
      if redis.call('HDEL', tickets, ticket) == 1 and final ~= '' then
        redis.call('SET', KEYS[6 + (i - 4) / 6], final, 'PX', keep_ms)
      end
      local mine = redis.call('HGET', users, who) or ''
      if string.sub(mine, 1, #ticket) == ticket then redis.call('HDEL', users, who) end
      finished = math.max(finished, tonumber(sequence))
    end
  end
end
if redis.call('XLEN', entries) == 0 then
  finished = math.max(finished, counted(counts, 'queued'))
  redis.call('SREM', active, queue)
end
if redis.call('EXISTS', counts) == 1 then
  redis.call('HSET', counts, 'finished', string.format('%.0f', finished))
end
return {{tonumber(number), removed}}
"""
"""Remove entries whose tickets are decided, and keep what no coupon says. Repeatable."""


def queue_keys(partition: int, queue: str) -> list[str]:
    """KEYS of ENQUEUE; FINISH has those of the final states too."""
    names = ("entries", "tickets", "users", "counts")
    return [*(_key(partition, f"{queue}:{name}") for name in names), active_key(partition)]


def active_key(partition: int) -> str:
    return _key(partition, "active")


def final_key(partition: int, queue: str, ticket_id: str) -> str:
    return _key(partition, f"{queue}:final:{ticket_id}")


def consumer_key(partition: int) -> str:
    """The key of the lock that the partition's consumer holds."""
    return _key(partition, "consumer")


def _key(partition: int, name: str) -> str:
    # The hash tag: all keys of a partition are in one slot of a cluster.
    return f"coupon:queue:{{{partition}}}:{name}"
