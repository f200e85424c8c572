-- Grants or renews a gateway's lease, unless another life of that id holds it that this one does not replace. One that was
-- granted before is renewed by name, in the copy of the store that granted it, or it is gone: a request that comes late may
-- have put back what was lost. A request that names none is a first one, or repeats one whose answer was lost.
-- KEYS: 1 lease, 2 lives of gateways    ARGV: gateway, incarnation, ttl ms, incarnation replaced or 0, name of the grant or 0
-- Returns the name of the grant; 0: refused.
local copy = string.format('%.0f', copy())
local lease = redis.call('GET', KEYS[1])
local holder, granted_by, grant = string.match(lease or '', '^(%d+):(%d+):(%d+)$')
local stands = holder == ARGV[2] and granted_by == copy
if ARGV[5] ~= '0' and not (stands and grant == ARGV[5]) then return '0' end
if holder and holder ~= ARGV[2] and holder ~= ARGV[4] then return '0' end
if not stands then
  local time = redis.call('TIME')
  grant = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
end
redis.call('SET', KEYS[1], ARGV[2] .. ':' .. copy .. ':' .. grant, 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1] .. ':' .. ARGV[2])
return grant
