-- A worker is about to work on entries of one partition.
-- KEYS  lease, withdrawn, attempts, queue
-- ARGV  lease as believed, group, then entries
-- -> false: not the owner | for each entry: how often it was begun, this time included; 0: it has left the queue
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local reply = {}
for i = 3, #ARGV do
  redis.call('SREM', KEYS[2], ARGV[i])
  if #redis.call('XPENDING', KEYS[4], ARGV[2], ARGV[i], ARGV[i], 1) == 0 then
    reply[#reply + 1] = 0
  else
    reply[#reply + 1] = redis.call('HINCRBY', KEYS[3], ARGV[i], 1)
  end
end
return reply
