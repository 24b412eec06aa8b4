-- Everything that a worker writes, at once or not at all.
-- KEYS  1 lease  2 queue  3 waiting  4 withdrawn  5 attempts  6 streams  7 gatherings  8 galleries  9 stream
--       10 gathering  11.. results of API processes, then gatherings to delete
-- ARGV  1 lease as believed  2 group  3 stream's name  4 'write', 'delete' or ''  5 state  6 card
--       7 seconds that the state lives (0: for ever)  8 gathering's name or ''  9 jobs to drop
--       10 seconds that a gathering lives  11 oldest time of a living API process (ms)  12 apis' key
--       13 most results  14 ms that results live
--       then five lists, each behind its length:
--         results    key index, api, job, reply
--         finished   entry, items
--         join       entry
--         delete     key index, gathering's name
--         cards      gallery, card ('': gone)
-- -> 'ok' | 'lost'
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'lost' end
local at = 14
local function next_value()
  at = at + 1
  return ARGV[at]
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for _ = 1, tonumber(next_value()) do
  local key, api, job, reply = KEYS[tonumber(next_value())], next_value(), next_value(), next_value()
  local seen = redis.call('ZSCORE', ARGV[12], api)
  if seen and tonumber(seen) >= now - tonumber(ARGV[11]) then -- else nobody waits any more
    redis.call('XADD', key, 'MAXLEN', '~', ARGV[13], '*', 'job', job, 'reply', reply)
    redis.call('PEXPIRE', key, ARGV[14])
  end
end

local finished = {}
for _ = 1, tonumber(next_value()) do
  finished[#finished + 1] = {next_value(), next_value()}
end

for _ = 1, tonumber(next_value()) do
  local entry = next_value()
  local found = redis.call('XRANGE', KEYS[2], entry, entry)
  if found[1] then
    for i = 1, #found[1][2], 2 do
      if found[1][2][i] == 'job' then redis.call('RPUSH', KEYS[10], found[1][2][i + 1]) end
    end
    redis.call('ZADD', KEYS[7], 0, ARGV[8])
    redis.call('EXPIRE', KEYS[10], ARGV[10])
  end
end
for _ = 1, tonumber(ARGV[9]) do redis.call('LPOP', KEYS[10]) end
if ARGV[8] ~= '' and redis.call('EXISTS', KEYS[10]) == 0 then redis.call('ZREM', KEYS[7], ARGV[8]) end

for _ = 1, tonumber(next_value()) do
  local key, name = KEYS[tonumber(next_value())], next_value()
  redis.call('DEL', key)
  redis.call('ZREM', KEYS[7], name)
end

for _ = 1, tonumber(next_value()) do
  local name, card = next_value(), next_value()
  if card == '' then redis.call('HDEL', KEYS[8], name) else redis.call('HSET', KEYS[8], name, card) end
end

if ARGV[4] == 'write' then
  redis.call('HSET', KEYS[9], 'state', ARGV[5], 'card', ARGV[6])
  if ARGV[7] == '0' then redis.call('PERSIST', KEYS[9]) else redis.call('EXPIRE', KEYS[9], ARGV[7]) end
  redis.call('ZADD', KEYS[6], math.floor(now / 1000), ARGV[3])
elseif ARGV[4] == 'delete' then
  redis.call('DEL', KEYS[9])
  redis.call('ZREM', KEYS[6], ARGV[3])
end

for _, entry in ipairs(finished) do
  redis.call('XACK', KEYS[2], ARGV[2], entry[1])
  if redis.call('XDEL', KEYS[2], entry[1]) == 1 then redis.call('DECRBY', KEYS[3], entry[2]) end
  redis.call('HDEL', KEYS[5], entry[1])
  redis.call('SREM', KEYS[4], entry[1])
end
return 'ok'
