-- New entries of partitions that this worker owns. Never blocks: a blocked read could outlive its lease.
-- KEYS  lease, queue and bell of each partition
-- ARGV  group, worker, most bytes, most entries of one partition, then each lease as believed
-- -> {index (from 0), entry, payload, ...}; index -1 - i: lease i is lost
local reply, bytes = {}, 0

local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end

for i = 1, #KEYS, 3 do
  local n, bell = (i - 1) / 3, KEYS[i + 2]
  if redis.call('GET', KEYS[i]) ~= ARGV[5 + n] then
    reply[#reply + 1] = -1 - n
    reply[#reply + 1] = ''
    reply[#reply + 1] = ''
    ring(bell) -- this worker may have heard it in place of the new owner
  elseif bytes >= tonumber(ARGV[3]) then
    ring(bell) -- next time
  else
    local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[4], 'STREAMS', KEYS[i + 1], '>')
    local entries = found and found[1] and found[1][2] or {}
    for _, entry in ipairs(entries) do
      for j = 1, #entry[2], 2 do
        if entry[2][j] == 'job' then
          reply[#reply + 1] = n
          reply[#reply + 1] = entry[1]
          reply[#reply + 1] = entry[2][j + 1]
          bytes = bytes + #entry[2][j + 1]
        end
      end
    end
    if #entries < tonumber(ARGV[4]) then redis.call('DEL', bell) else ring(bell) end -- maybe there are more
  end
end
return reply
