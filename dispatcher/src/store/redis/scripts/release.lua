-- Gives a partition up. The epoch stays, because they must go on growing, under a nonce that nobody was told.
-- KEYS: 1 fence    ARGV: epoch, nonce, new nonce
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
redis.call('HSET', KEYS[1], 'n', ARGV[3], 'w', '', 'i', '0')
return {'ok'}
