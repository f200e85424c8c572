-- What a stream was answered.
-- KEYS: 1 fence, 2 answers    ARGV: epoch, nonce
local fence = redis.call('HMGET', KEYS[1], 'e', 'n')
if fence[1] ~= ARGV[1] or fence[2] ~= ARGV[2] then return {'fenced'} end
return {'ok', redis.call('LRANGE', KEYS[2], 0, -1)}
