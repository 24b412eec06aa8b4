-- Remove counts of attempts, and marks of withdrawn entries, that nobody asks for any more.
-- A begun entry is pending until it is settled or withdrawn, so one that is not pending needs no count.
-- Marks are for workers that hold the entry in their buffer; one that still does after so long, only works
-- for a client that has left.
-- KEYS  queue, attempts, withdrawn
-- ARGV  '1': remove, else only count; group; seconds that marks are kept; then entries
-- -> {attempts, marks}
local time = redis.call('TIME')
local oldest = (time[1] - tonumber(ARGV[3])) * 1000
local attempts, marks = 0, 0
for i = 4, #ARGV do
  local entry = ARGV[i]
  if redis.call('HEXISTS', KEYS[2], entry) == 1 then
    local pending = redis.pcall('XPENDING', KEYS[1], ARGV[2], entry, entry, 1) -- an error: there is no queue
    if pending.err or #pending == 0 then
      if ARGV[1] == '1' then redis.call('HDEL', KEYS[2], entry) end
      attempts = attempts + 1
    end
  end
  if tonumber(string.match(entry, '^%d+')) < oldest and redis.call('SISMEMBER', KEYS[3], entry) == 1 then
    if ARGV[1] == '1' then redis.call('SREM', KEYS[3], entry) end
    marks = marks + 1
  end
end
return {attempts, marks}
