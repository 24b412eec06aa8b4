-- Admit jobs, all or none.
-- KEYS  waiting, then queue and bell of each job
-- ARGV  capacity, latest time (ms since 1970), then items and payload of each job
-- -> {"ok", entry...} | {"full", waiting} | {"late"}
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 > tonumber(ARGV[2]) then
  return {'late'} -- the sender has given up by now and told its client so
end
local jobs = (#KEYS - 1) / 2
local asked = 0
for i = 1, jobs do asked = asked + tonumber(ARGV[1 + 2 * i]) end
local waiting = tonumber(redis.call('GET', KEYS[1]) or '0')
if asked > 0 and waiting + asked > tonumber(ARGV[1]) then
  return {'full', waiting}
end
local reply = {'ok'}
for i = 1, jobs do
  local queue, bell = KEYS[2 * i], KEYS[2 * i + 1]
  reply[i + 1] = redis.call('XADD', queue, '*', 'items', ARGV[1 + 2 * i], 'job', ARGV[2 + 2 * i])
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end
redis.call('INCRBY', KEYS[1], asked)
return reply
