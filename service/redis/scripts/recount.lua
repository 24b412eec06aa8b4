-- Count the waiting items anew from the entries themselves. One script, so nothing comes or goes meanwhile.
-- KEYS  waiting, then queues
-- ARGV  '1': correct it, else only count
-- -> {as it stood, as counted}
local counted = 0
for i = 2, #KEYS do
  local start = '-'
  while true do
    local found = redis.call('XRANGE', KEYS[i], start, '+', 'COUNT', 8) -- few: payloads come along
    for _, entry in ipairs(found) do
      for j = 1, #entry[2], 2 do
        if entry[2][j] == 'items' then counted = counted + tonumber(entry[2][j + 1]) end
      end
      start = '(' .. entry[1]
    end
    if #found < 8 then break end
  end
end
local stood = tonumber(redis.call('GET', KEYS[1]) or '0')
if ARGV[1] == '1' and stood ~= counted then redis.call('SET', KEYS[1], counted) end
return {stood, counted}
