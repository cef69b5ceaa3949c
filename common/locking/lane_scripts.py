"""The scripts of the lanes' locks.

A key's value is the token of the batch that owns it, and behind it, each after a ``|``, the names
of the processes that have found it busy. The owner's release publishes the key on the channel of
each of them. Where nobody waits, the value is the token alone, and neither script has a command
more than without any waiting.

A value that does not begin with MARK is of somebody else, or of an earlier release, whose owner
frees the key only if the value is still its token: it is left alone, and wakes nobody.
"""

from __future__ import annotations

from typing import Final

CHANNEL: Final = "tally:lanes:"
"""What the name of a process' channel begins with. A message on it is a key."""

MARK: Final = "lane:"
"""What a token begins with."""

ACQUIRE: Final = f"""
local token, lease, process, singles = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local owned, reply = {{}}, {{}}

local function wait_for(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' and string.sub(value, 1, {len(MARK)}) == '{MARK}'
      and not string.find(value, process, 1, true) then
    redis.pcall('APPEND', key, '|' .. process)
  end
end

for i = 1, singles do
  local key = KEYS[i]
  if owned[key] or redis.call('SET', key, token, 'NX', 'PX', lease) then
    owned[key], reply[i] = true, 0
  else
    reply[i] = i
    wait_for(key)
  end
end

local last = singles
for command = 5, #ARGV do
  local taken, busy = {{}}, 0
  local first = last + 1
  last = last + ARGV[command]
  for i = first, last do
    local key = KEYS[i]
    if not owned[key] then
      if redis.call('SET', key, token, 'NX', 'PX', lease) then
        owned[key] = true
        taken[#taken + 1] = key
      else
        busy = i
        break
      end
    end
  end
  if busy > 0 then
    for _, key in ipairs(taken) do
      redis.call('DEL', key)
      owned[key] = nil
    end
    wait_for(KEYS[busy])
  end
  reply[#reply + 1] = busy
end
return reply
"""
"""Token, lease in ms, process, the number of commands with one key, the number of keys of each
other command; KEYS are those of all commands. The reply has 0 for a command that owns its keys, or
else the place in KEYS of a busy one: then the command owns none, and the release of that key is
published to its process. Of a cluster's part, several commands may have the same single key. A user
that may not append takes locks too."""

RELEASE: Final = f"""
local freed = 0
for _, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if value == ARGV[1] then
    freed = freed + redis.call('DEL', key)
  elseif value and string.sub(value, 1, #ARGV[1] + 1) == ARGV[1] .. '|' then
    freed = freed + redis.call('DEL', key)
    for process in string.gmatch(string.sub(value, #ARGV[1] + 2), '[^|]+') do
      redis.pcall('PUBLISH', '{CHANNEL}' .. process, key)
    end
  end
end
return freed
"""
"""Token. Only the owner frees a key: after an expired lease another owner may hold it. A user that
may not publish frees it too."""
