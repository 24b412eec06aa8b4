-- Take free partitions, or those that this worker held before, up to a number.
-- KEYS  lease, fence and queue of each partition on offer
-- ARGV  worker, lease length (ms), group, how many
-- -> {index (from 0), token, ...}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for i = 1, #KEYS, 3 do
  if #taken / 2 >= tonumber(ARGV[4]) then break end
  local holder = redis.call('GET', KEYS[i])
  local prefix = ARGV[1] .. ':'
  if not holder or string.sub(holder, 1, #prefix) == prefix then
    -- The time keeps a token from being given out twice by a Redis that has lost its last writes.
    local token = math.max(redis.call('INCR', KEYS[i + 1]), now)
    redis.call('SET', KEYS[i + 1], string.format('%.0f', token))
    redis.call('SET', KEYS[i], prefix .. string.format('%.0f', token), 'PX', ARGV[2])
    redis.pcall('XGROUP', 'CREATE', KEYS[i + 2], ARGV[3], '0', 'MKSTREAM') -- there already: as well
    taken[#taken + 1] = (i - 1) / 3
    taken[#taken + 1] = token
  end
end
return taken
