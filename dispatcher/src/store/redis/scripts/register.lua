-- One session registers: the highest login number stays. The same rule in Rust, with its reasons: store/policy.rs.
-- KEYS: 1 routes, 2 groups, 3 the partition's login counter; under a claim: 4 its fence, 5 sessions that lost their place
-- ARGV: device, platform, session (16 hex digits), incarnation, login number or 0, wall ms, newest wins 0|1, routes at most;
--   under a claim: epoch, nonce, user
if KEYS[4] then
  local fence = redis.call('HMGET', KEYS[4], 'e', 'n', 'c', 'h')
  if is_void(KEYS[4], fence, ARGV[9], ARGV[10]) then return {'fenced'} end
end
local device, platform, session = ARGV[1], ARGV[2], ARGV[3]
local counter, login = tonumber(redis.call('GET', KEYS[3]) or '0'), tonumber(ARGV[5])
if login == 0 then login = math.max(counter + 1, tonumber(ARGV[6])) end

local fields, losers = redis.call('HGETALL', KEYS[1]), {}
local routes = {}
for at = 1, #fields, 2 do
  local number, _, its_session, its_platform = string.match(fields[at + 1], '^(%d+):(%d+):(%x+):(.*)$')
  local route = { device = fields[at], packed = fields[at + 1], login = tonumber(number) }
  route.same = fields[at] == device
  route.rival = route.same or (ARGV[7] == '1' and its_platform == platform)
  route.own = route.same and its_session == session
  routes[#routes + 1] = route
end

if login > counter then redis.call('SET', KEYS[3], string.format('%.0f', login)) end
local number = string.format('%.0f', login)
for _, route in ipairs(routes) do
  if route.rival and not route.own and (route.login > login or (route.login == login and not route.same)) then
    return {'ok', number, 1, {}, {}}
  end
end

local stay = {}
for _, route in ipairs(routes) do
  if route.rival then
    if not route.own then
      losers[#losers + 1] = route.device
      losers[#losers + 1] = route.packed
    end
    if not route.same then redis.call('HDEL', KEYS[1], route.device) end
  else
    stay[#stay + 1] = route
  end
end
redis.call('HSET', KEYS[1], device, number .. ':' .. ARGV[4] .. ':' .. session .. ':' .. platform)
stay[#stay + 1] = { device = device, login = login }
table.sort(stay, function(a, b) return a.login < b.login end)
for at = 1, #stay - tonumber(ARGV[8]) do
  losers[#losers + 1] = stay[at].device
  losers[#losers + 1] = redis.call('HGET', KEYS[1], stay[at].device)
  redis.call('HDEL', KEYS[1], stay[at].device)
end
if KEYS[5] then
  -- Kept until they are closed. One that lost to a session that resumed it may be back; or it is gone with its gateway, and
  -- its id is that of this session now.
  local user = ARGV[11]
  local before = redis.call('ZRANGEBYLEX', KEYS[5], '[' .. user .. '\0', '(' .. user .. '\1')
  for at = 1, #losers, 2 do redis.call('ZADD', KEYS[5], 0, user .. '\0' .. losers[at] .. '\0' .. losers[at + 1]) end
  for _, lost in ipairs(before) do
    local its_device, packed = string.match(lost, '^%Z*%z(%Z*)%z(.*)$')
    if string.match(packed, '^%d+:%d+:(%x+):') == session then
      redis.call('ZREM', KEYS[5], lost)
    else
      losers[#losers + 1] = its_device
      losers[#losers + 1] = packed
    end
  end
end
-- A group's name, without what is kept with it.
local groups = redis.call('ZRANGE', KEYS[2], 0, -1)
for at, group in ipairs(groups) do groups[at] = string.match(group, '^%Z*') end
return {'ok', number, 0, losers, groups}
