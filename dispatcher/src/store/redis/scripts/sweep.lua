-- Removes the routes that dead lives of gateways left behind on one user's key.
-- KEYS: 1 routes    ARGV: gateway (3 hex digits) ':' incarnation, ...
local dead, gone = {}, 0
for _, life in ipairs(ARGV) do dead[life] = true end
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
  local incarnation, session = string.match(fields[at + 1], '^%d+:(%d+):(%x+):')
  if incarnation and dead[string.sub(session, 1, 3) .. ':' .. incarnation] then
    gone = gone + redis.call('HDEL', KEYS[1], fields[at])
  end
end
return gone
