-- A conversation as its owner may see it: a paused owner must not read an old head and answer with it.
-- KEYS: 1 fence, 2 log, 3 members, 4 state    ARGV: epoch, nonce
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
local log = redis.call('HMGET', KEYS[2], 'h', 'f')
local newest = log[1] and redis.call('HGET', KEYS[2], log[1]) or ''
return {'ok', log[1] or '0', log[2] or '1', newest, redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4])}
