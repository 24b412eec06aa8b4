-- What the partition's former owner left pending becomes this worker's.
-- KEYS  lease, queue, attempts
-- ARGV  lease as believed, group, worker, first entry, count
-- -> false: not the owner | {next entry ('0-0' at the end), entry, payload, 1 if it was begun before else 0, ...}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local claimed = redis.call('XAUTOCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
local reply = {claimed[1]}
for _, id in ipairs(claimed[2]) do
  local found = redis.call('XRANGE', KEYS[2], id, id)
  if found[1] then
    local fields = found[1][2]
    reply[#reply + 1] = id
    for i = 1, #fields, 2 do
      if fields[i] == 'job' then reply[#reply + 1] = fields[i + 1] end
    end
    reply[#reply + 1] = redis.call('HEXISTS', KEYS[3], id)
  else
    redis.call('XACK', KEYS[2], ARGV[2], id)
  end
end
return reply
