-- A conversation as its owner may see it: a paused owner must not read an old head and answer with it.
-- KEYS: 1 fence, 2 log, 3 members, 4 state    ARGV: epoch, nonce
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
local log = log_of(KEYS[2])
if not is_whole(KEYS[2], log) then return {'damaged', KEYS[2], string.format('%.0f', log.head)} end
local newest = redis.call('HGET', KEYS[2], string.format('%.0f', log.head)) or ''
return {'ok', log.head, log.first, newest, redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4])}
