-- Take free partitions, or those that this worker held before, up to a number.
-- KEYS  lease, fence and queue of each partition on offer
-- ARGV  worker, lease length (ms), group, how many
-- -> {index (from 0), token, ...}
local taken = {}
for i = 1, #KEYS, 3 do
  if #taken / 2 >= tonumber(ARGV[4]) then break end
  local holder = redis.call('GET', KEYS[i])
  local prefix = ARGV[1] .. ':'
  if not holder or string.sub(holder, 1, #prefix) == prefix then
    local token = redis.call('INCR', KEYS[i + 1])
    redis.call('SET', KEYS[i], prefix .. token, 'PX', ARGV[2])
    redis.pcall('XGROUP', 'CREATE', KEYS[i + 2], ARGV[3], '0', 'MKSTREAM') -- there already: as well
    taken[#taken + 1] = (i - 1) / 3
    taken[#taken + 1] = token
  end
end
return taken
