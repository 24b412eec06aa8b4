-- Give partitions back. With a worker's name in ARGV[1] it leaves for good.
-- KEYS  workers, then leases
-- ARGV  worker or '', then what the worker believes each lease to be
if ARGV[1] ~= '' then redis.call('ZREM', KEYS[1], ARGV[1]) end
for i = 2, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i] then redis.call('DEL', KEYS[i]) end
end
return 1
