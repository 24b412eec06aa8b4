-- A worker is about to work on entries of one partition.
-- KEYS  lease, withdrawn, attempts
-- ARGV  lease as believed, then entries
-- -> false: not the owner | for each entry: how often it was begun, this time included; 0: its client left
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local reply = {}
for i = 2, #ARGV do
  if redis.call('SREM', KEYS[2], ARGV[i]) == 1 then
    reply[#reply + 1] = 0
  else
    reply[#reply + 1] = redis.call('HINCRBY', KEYS[3], ARGV[i], 1)
  end
end
return reply
