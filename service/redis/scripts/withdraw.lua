-- A client left: its entry goes, unless it is begun or settled. A worker that has it in its buffer is told.
-- KEYS  waiting, queue, withdrawn, attempts
-- ARGV  entry, items, group, seconds to remember
if redis.call('HEXISTS', KEYS[4], ARGV[1]) == 1 then return 0 end -- what is begun is settled, once and whole
if redis.call('XDEL', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('XACK', KEYS[2], ARGV[3], ARGV[1])
redis.call('DECRBY', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[4])
return 1
