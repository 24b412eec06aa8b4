-- Remove workers and API processes that have not been heard of for long, with results that nobody reads.
-- Scores only rise, and who comes back adds itself again.
-- KEYS  workers, apis, then results of some API processes
-- ARGV  '1': remove, else only count; ms after which a worker is gone; the same for APIs; then API processes
-- -> {workers, apis, results}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local results = 0
for i = 3, #KEYS do
  local seen = redis.call('ZSCORE', KEYS[2], ARGV[i + 1])
  if (not seen or tonumber(seen) < now - tonumber(ARGV[3])) and redis.call('EXISTS', KEYS[i]) == 1 then
    if ARGV[1] == '1' then redis.call('DEL', KEYS[i]) end
    results = results + 1
  end
end
local found = {}
for i = 1, 2 do
  local before = '(' .. string.format('%.0f', now - tonumber(ARGV[i + 1]))
  found[i] = redis.call('ZCOUNT', KEYS[i], '-inf', before)
  if ARGV[1] == '1' then redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', before) end
end
return {found[1], found[2], results}
