-- Cursors in the order of their names.
-- KEYS: 1 fence, 2 cursors    ARGV: epoch, nonce, from, to, at most (-1: all)
local fence = redis.call('HMGET', KEYS[1], 'e', 'n', 'c', 'h')
if is_void(KEYS[1], fence, ARGV[1], ARGV[2]) then return {'fenced'} end
return {'ok', redis.call('ZRANGEBYLEX', KEYS[2], ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[5])}
