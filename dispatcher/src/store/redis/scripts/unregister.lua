-- Removes a route if it is still that of this session: one that resumed has the login number of the one before.
-- KEYS: 1 routes    ARGV: device, login number, incarnation, session (16 hex digits)
local route = redis.call('HGET', KEYS[1], ARGV[1])
if not route then return 0 end
local login, incarnation, session = string.match(route, '^(%d+):(%d+):(%x+):')
if login ~= ARGV[2] or incarnation ~= ARGV[3] or session ~= ARGV[4] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
