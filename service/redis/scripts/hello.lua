-- An API process says that it lives, and learns what it needs to know.
-- KEYS  apis, waiting, workers, encoder, galleries
-- ARGV  API process, ms after which a worker counts as gone
-- -> {time in ms, items waiting, workers alive, encoder card or '', gallery, card, ...}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 3600000)
local reply = {
  now,
  tonumber(redis.call('GET', KEYS[2]) or '0'),
  redis.call('ZCOUNT', KEYS[3], now - tonumber(ARGV[2]), '+inf'),
  redis.call('GET', KEYS[4]) or '',
}
for _, value in ipairs(redis.call('HGETALL', KEYS[5])) do reply[#reply + 1] = value end
return reply
