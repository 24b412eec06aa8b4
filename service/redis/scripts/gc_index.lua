-- Remove streams from the index whose state has expired. State and index entry are written in one script
-- (settle.lua), so an entry without a state is none that is about to get one.
-- KEYS  streams, then the state of each name
-- ARGV  '1': remove, else only count; then names
-- -> how many
local count = 0
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 and redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    if ARGV[1] == '1' then redis.call('ZREM', KEYS[1], ARGV[i]) end
    count = count + 1
  end
end
return count
