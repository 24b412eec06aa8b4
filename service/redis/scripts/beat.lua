-- A worker says that it lives, and renews its leases.
-- KEYS  workers, waiting, then leases
-- ARGV  worker, lease length (ms), then what the worker believes each lease to be
-- -> {workers alive, items waiting, time in ms, index (from 0) of each lease that is lost...}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 2 * tonumber(ARGV[2]))
local reply = {redis.call('ZCARD', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0'), now}
for i = 3, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i] then
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  else
    reply[#reply + 1] = i - 3
  end
end
return reply
