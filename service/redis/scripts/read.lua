-- New entries of the partitions that this worker owns. Never blocks: a blocked read could outlive its lease.
-- KEYS  lease, queue and bell of each partition
-- ARGV  group, worker, most bytes, most entries of one partition, partition (from 0) whose bell was heard or -1,
--       then each lease as believed
-- Read are the one that was heard and those whose bell rings; with -1 all of them.
-- -> {index (from 0), entry, payload, ...}; index -1 - i: lease i is lost
local reply, bytes, heard = {}, 0, tonumber(ARGV[5])

local function ring(bell)
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end

local function read(n, queue, bell)
  local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[4], 'STREAMS', queue, '>')
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

for i = 1, #KEYS, 3 do
  local n, bell = (i - 1) / 3, KEYS[i + 2]
  if heard == -1 or heard == n or redis.call('EXISTS', bell) == 1 then
    if redis.call('GET', KEYS[i]) ~= ARGV[6 + n] then
      reply[#reply + 1] = -1 - n
      reply[#reply + 1] = ''
      reply[#reply + 1] = ''
      ring(bell) -- its new owner may be waiting for it
    elseif bytes < tonumber(ARGV[3]) then
      read(n, KEYS[i + 1], bell)
    else
      ring(bell) -- next time
    end
  end
end
return reply
