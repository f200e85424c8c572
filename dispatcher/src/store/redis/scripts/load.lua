-- A conversation as its owner may see it: a paused owner must not read an old head and answer with it.
-- KEYS: 1 fence, 2 log, 3 members    ARGV: epoch, nonce, entries at most
local fence = redis.call('HMGET', KEYS[1], 'e', 'n')
if fence[1] ~= ARGV[1] or fence[2] ~= ARGV[2] then return {'fenced'} end
local recent = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[3])
return {'ok', redis.call('HGETALL', KEYS[3]), recent}
