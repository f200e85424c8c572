-- Grants or renews a gateway's lease, unless another life of that id holds it that this one does not replace. One that was
-- held is renewed by the copy of the store that granted it, or it is gone.
-- KEYS: 1 lease, 2 lives of gateways    ARGV: gateway, incarnation, ttl ms, incarnation replaced or 0, copy or 0
local copy = copy()
local holder = redis.call('GET', KEYS[1])
if ARGV[5] ~= '0' and (holder ~= ARGV[2] or tonumber(ARGV[5]) ~= copy) then return {0, 1, copy} end
if holder and holder ~= ARGV[2] and holder ~= ARGV[4] then return {0, 0, copy} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1] .. ':' .. ARGV[2])
return {1, holder == ARGV[2] and 0 or 1, copy}
