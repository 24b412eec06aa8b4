-- Remove gatherings that are listed and empty, or that nobody has used for long and whose stream has no state.
-- A stream gathers before its first state is written, so having no state is no sign by itself.
-- KEYS  gatherings, then gathering and stream's state of each name
-- ARGV  '1': remove, else only count; seconds that a gathering lives; seconds without use; then names
-- -> {empty, orphaned}
local empty, orphaned = 0, 0
for i = 2, #KEYS, 2 do
  local name = ARGV[3 + i / 2]
  if redis.call('EXISTS', KEYS[i]) == 0 then
    if redis.call('ZSCORE', KEYS[1], name) then
      if ARGV[1] == '1' then redis.call('ZREM', KEYS[1], name) end
      empty = empty + 1
    end
  elseif redis.call('EXISTS', KEYS[i + 1]) == 0 then
    local left = redis.call('TTL', KEYS[i]) -- set anew by every use
    if left >= 0 and tonumber(ARGV[2]) - left >= tonumber(ARGV[3]) then
      if ARGV[1] == '1' then
        redis.call('DEL', KEYS[i])
        redis.call('ZREM', KEYS[1], name)
      end
      orphaned = orphaned + 1
    end
  end
end
return {empty, orphaned}
