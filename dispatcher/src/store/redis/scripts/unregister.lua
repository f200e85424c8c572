-- Removes a route if it is still that of this login.
-- KEYS: 1 routes    ARGV: device, login number, incarnation
local route = redis.call('HGET', KEYS[1], ARGV[1])
if not route then return 0 end
local login, incarnation = string.match(route, '^(%d+):(%d+):')
if login ~= ARGV[2] or incarnation ~= ARGV[3] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
