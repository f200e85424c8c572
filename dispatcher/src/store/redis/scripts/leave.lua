-- Ends a node's lease if it is still this life's.
-- KEYS: 1 lease, 2 names of nodes    ARGV: name, incarnation
local lease = redis.call('GET', KEYS[1])
if lease and string.match(lease, '^(%d+):') == ARGV[2] then
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[2], ARGV[1])
end
return 1
