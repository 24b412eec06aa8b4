-- Remove the consumers of workers that are gone. What one left pending stays until it has been claimed.
-- KEYS  queue, workers, lease
-- ARGV  '1': remove, else only count; group; ms after which a worker counts as gone
-- -> how many
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder = redis.call('GET', KEYS[3]) or ''
local count = 0
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if group[2] == ARGV[2] then
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[2])) do
      local name, pending = consumer[2], consumer[4]
      local seen = redis.call('ZSCORE', KEYS[2], name)
      local alive = seen and tonumber(seen) >= now - tonumber(ARGV[3])
      local owner = string.sub(holder, 1, #name + 1) == name .. ':'
      -- Were it alive after all: with nothing pending nothing is lost, and its next read makes it again.
      if pending == 0 and not alive and not owner then
        if ARGV[1] == '1' then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[2], name) end
        count = count + 1
      end
    end
  end
end
return count
