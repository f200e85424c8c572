-- Gives a partition up. The fence stays: epochs must go on growing.
-- KEYS: 1 fence    ARGV: epoch, nonce
local fence = redis.call('HMGET', KEYS[1], 'e', 'n')
if fence[1] ~= ARGV[1] or fence[2] ~= ARGV[2] then return {'fenced'} end
redis.call('HSET', KEYS[1], 'w', '', 'i', '0')
return {'ok'}
