-- Renews a node's lease, unless another life of that name holds it that this one does not replace, and reads who is there,
-- and what time it is.
-- The leases read here share KEYS' hash tag.
-- KEYS: 1 this node's lease, 2 names of nodes, 3 lives of gateways, 4 owners
-- ARGV: address, ttl ms, name, prefix of node leases, prefix of gateway leases, incarnation, incarnation replaced or 0
local lease = redis.call('GET', KEYS[1])
local holder = lease and string.match(lease, '^(%d+):') or '0'
if holder == '0' or holder == ARGV[6] or holder == ARGV[7] then
  redis.call('SET', KEYS[1], ARGV[6] .. ':' .. ARGV[1], 'PX', ARGV[2])
  redis.call('SADD', KEYS[2], ARGV[3])
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local nodes, live, dead = {}, {}, {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local lease = redis.call('GET', ARGV[4] .. name)
  if lease then
    nodes[#nodes + 1] = name
    nodes[#nodes + 1] = lease
  else
    redis.call('SREM', KEYS[2], name)
  end
end
-- A life stays listed until its routes are swept, whoever was there to see its lease end.
for _, life in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local gateway, incarnation = string.match(life, '^(%d+):(%d+)$')
  local lease = redis.call('GET', ARGV[5] .. gateway)
  if lease and string.match(lease, '^(%d+):') == incarnation then
    live[#live + 1] = life
  else
    dead[#dead + 1] = life
  end
end
return {holder, nodes, live, dead, redis.call('HGETALL', KEYS[4]), copy(), now}
